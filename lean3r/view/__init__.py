"""See a result: packed small, on a page of its own for any browser, without a network and without another program."""
