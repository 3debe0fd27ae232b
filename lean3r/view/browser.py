"""Open an address in the user's browser, if there is one that shows pictures."""

from __future__ import annotations

import contextlib
import threading
import webbrowser


def find_browser() -> webbrowser.BaseBrowser | None:
    """The browser that the system names; None if there is none, or one that runs in the terminal."""
    try:
        browser = webbrowser.get()
    except webbrowser.Error:
        return None
    in_terminal = isinstance(browser, webbrowser.GenericBrowser) and not isinstance(
        browser, webbrowser.BackgroundBrowser
    )
    return None if in_terminal else browser


def open_page(address: str) -> bool:
    """Open an address without waiting for it; False if there is no browser."""
    browser = find_browser()
    if browser is None:
        return False

    def attempt() -> None:
        with contextlib.suppress(Exception):  # the address is printed as well
            browser.open(address)

    threading.Thread(target=attempt, daemon=True).start()
    return True
