"""What an H200 allows at best for the aims of Pi3 at 24 x 36 patches a view: arithmetic alone, nothing is run.

    python benchmarks/gpu/roofline.py        # prints the tables of README.md

A time is the longer of operations at the peak and bytes at full bandwidth. Counted: products of linear layers and of
attention, a multiply-add as two operations; of a gsa layer q, k, v and the output once each, and key blocks read by
four neighbouring windows together where their lists are alike. Not counted: softmax, norms, rotation, launches. The
table of linear layers counts norms, GELU, rounding and biases too: their bytes, and for rounding the instructions that
Triton compiles for sm_90 (SASS of the kernel over numbers a thread).
"""

from __future__ import annotations

from dataclasses import dataclass

PATCHES, WINDOW, TOP_K = 24 * 36, 16, 32


@dataclass(frozen=True)
class Machine:
    """Operations a second in bfloat16 and in E4M3, without sparsity, and bytes a second."""

    bf16: float
    fp8: float
    bytes: float

    def milliseconds(self, flops: float, moved: float = 0.0) -> float:
        """The roofline of work in bfloat16."""
        return 1e3 * max(flops / self.bf16, moved / self.bytes)


H200 = Machine(989e12, 1979e12, 4.8e12)


def attention_flops(queries: int, keys: int, width: int) -> float:
    """Scores and mixed values, over all heads."""
    return 4.0 * queries * keys * width


def linear_flops(tokens: int, inputs: int, outputs: int) -> float:
    """A linear layer."""
    return 2.0 * tokens * inputs * outputs


@dataclass(frozen=True)
class Layer:
    """A global attention layer, from q, k, v to the output, in bfloat16."""

    views: int
    patches: int = PATCHES
    special: int = 0
    width: int = 1024

    @property
    def tokens(self) -> int:
        return self.views * (self.patches + self.special)

    @property
    def windows(self) -> int:
        return self.views * self.patches // WINDOW

    def dense(self) -> tuple[float, float]:
        """Operations and bytes of softmax attention over everything."""
        return attention_flops(self.tokens, self.tokens, self.width), 8.0 * self.tokens * self.width

    def selection(self, regions: int | None = None) -> tuple[float, float]:
        """Of attention between windows; lists are written. In two levels: between regions of 4 windows, then scores of
        the windows in the best `regions`, each read once by the 4 windows of a region."""
        if regions is None:
            return attention_flops(self.windows, self.windows, self.width), 8.0 * self.windows * (self.width + TOP_K)
        count = self.windows // 4
        candidates = 4 * min(regions, count)
        flops = attention_flops(count, count, self.width) + linear_flops(self.windows, self.width, candidates)
        return flops, 8.0 * self.windows * (self.width + TOP_K) + 2.0 * count * candidates * self.width

    def sparse(self, dense_keys: int = 0) -> tuple[float, float]:
        """Of the pass over chosen windows, with further keys that all patches see."""
        queries = self.views * self.patches
        keys = min(TOP_K * WINDOW, queries) + dense_keys
        moved = 4.0 * queries * self.width + 4.0 * (self.windows / 4) * min(TOP_K * WINDOW, queries) * self.width
        return attention_flops(queries, keys, self.width), moved

    def norm_and_rotation(self, *, pooled: bool = False) -> tuple[float, float]:
        """Bytes of q and k, read and written once, and of the means of their windows; operations do not count."""
        return 0.0, 8.0 * self.tokens * self.width + (4.0 * self.windows * self.width if pooled else 0.0)

    def special_queries(self, keys: int) -> tuple[float, float]:
        """Of special tokens that see so many keys."""
        few = self.views * self.special
        return attention_flops(few, keys, self.width), 4.0 * (keys + few) * self.width

    def gsa(self, *, pooled: bool = False, regions: int | None = None) -> tuple[float, float]:
        """Of all of it; pooling reads q, k and v, merging reads and writes the output. `pooled`: special tokens are.
        `regions`: candidates of two levels of selection."""
        seen, sees = self.views * self.special, self.tokens
        if pooled and self.special:
            seen, sees = self.views, self.views * self.special + self.windows
        parts = [self.selection(regions), self.sparse(seen), self.special_queries(sees)]
        flops, moved = (sum(column) for column in zip(*parts, strict=True))
        return flops, moved + 10.0 * self.tokens * self.width


@dataclass(frozen=True)
class Model:
    """Transformer blocks of one width: `encoder` and `heads` without, trunk with `special` tokens a view."""

    encoder: int
    frame: int
    global_: int
    heads: int
    special: int
    width: int = 1024

    def linears(self, views: int, patches: int = PATCHES) -> float:
        """Operations of qkv, projection and feed-forward part: 24 width^2 a token and block."""
        blocks = self.encoder + self.frame + self.global_ + self.heads
        return 24.0 * self.width**2 * blocks * views * (patches + self.special)

    def within(self, views: int, patches: int = PATCHES) -> float:
        """Operations of attention inside the views."""
        blocks = self.encoder + self.frame + self.heads
        return blocks * views * attention_flops(patches + self.special, patches + self.special, self.width)

    def flops(
        self, views: int, patches: int = PATCHES, *, gsa: bool, pooled: bool = False, regions: int | None = None
    ) -> float:
        """Of one run; convolutions of dense heads are not counted."""
        layer = Layer(views, patches, self.special, self.width)
        across = layer.gsa(pooled=pooled, regions=regions) if gsa else layer.dense()
        return self.linears(views, patches) + self.within(views, patches) + self.global_ * across[0]


MODELS = {
    "pi3": Model(encoder=24, frame=18, global_=18, heads=15, special=5),
    "vggt": Model(encoder=24, frame=24, global_=24, heads=0, special=5),
    "da3-large": Model(encoder=8, frame=8, global_=8, heads=0, special=1),
}


def table(machine: Machine = H200) -> str:
    """The aims beside what the roofline says, as Markdown."""
    layer, time = Layer(1024, special=5), machine.milliseconds
    whole, pooled, chosen = time(*layer.gsa()), time(*layer.gsa(pooled=True)), time(*layer.selection())
    lines = [
        "| aim | roofline | what follows |",
        "| --- | --- | --- |",
        f"| gsa layer at 1,024 views at most 100 ms | {whole:.0f} ms, {pooled:.0f} ms with registers pooled; dense "
        f"{time(*layer.dense()):,.0f} ms | possible at {whole:.0f} % of the peak, at {pooled:.0f} % pooled |",
        f"| selection at most a third of it | {chosen:.1f} ms: {chosen / whole:.0%}, {chosen / pooled:.0%} pooled | "
        f"possible with registers in full; pooled, it has 33 of 100 ms at {chosen / 33:.0%} of the peak |",
    ]
    two, two_pooled = (time(*layer.gsa(pooled=pooled, regions=64)) for pooled in (False, True))
    lines.append(
        f"| the same, windows chosen in two levels | {two:.0f} ms, {two_pooled:.0f} ms pooled | "
        f"selection {time(*layer.selection(64)):.1f} ms, bound by the candidates' bytes; less from some 130 views on |"
    )
    for views, wanted in ((1024, 25.0), (32, 2.2)):
        found = ratios(views, machine)
        shown = ", ".join(f"{value:.1f}x {name}" for name, value in found.items())
        enough = [name for name, value in found.items() if value >= wanted]
        lines.append(f"| Pi3 at {views:,} views {wanted:g}x dense | {shown} | possible {', or '.join(enough)} |")
    return "\n".join(lines)


def ratios(views: int, machine: Machine) -> dict[str, float]:
    """Dense time in bfloat16 over gsa time, both at the peak, by type of the linear layers and sort of registers."""
    pi3 = MODELS["pi3"]
    dense = pi3.flops(views, gsa=False) / machine.bf16
    found: dict[str, float] = {}
    for kind, rate in (("in bf16", machine.bf16), ("with FP8 linears", machine.fp8)):
        for name, pooled in ((kind, False), (f"{kind}, pooled", True)):
            rest = pi3.within(views) / machine.bf16 + pi3.linears(views) / rate
            layer = machine.milliseconds(*Layer(views, special=pi3.special).gsa(pooled=pooled)) / 1e3
            found[name] = dense / (rest + pi3.global_ * layer)
    return found


ISSUED = 132 * 4 * 32 * 1.83e9  # instructions of threads a second, at the clock of the peak
APART = {1024: 69.0, 4096: 54.5}  # instructions for a number when rounding was a pass of its own, by numbers in a row
ROUNDED = {"norm": 26.0, "nothing": 13.0, "gelu": 25.5}  # now, by what is computed before


def block_milliseconds(form: str, views: int, machine: Machine = H200, width: int = 1024, special: int = 5) -> float:
    """Linear layers of a block with their norms and GELU, activations in bfloat16.

    `form` "bf16" is all in bfloat16, "apart" FP8 with LayerNorm, GELU, rounding and bias as passes of their
    own, "fused" with one pass before each product, "products" without what comes between.
    """
    layers = {"norm": (1, 3), "nothing": (1, 1), "norm again": (1, 4), "gelu": (4, 1)}
    rows, total = views * (PATCHES + special), 0.0
    for before, (inputs, outputs) in layers.items():
        kind, read, written = before.split()[0], rows * inputs * width, rows * outputs * width
        rate, size = (machine.bf16, 2) if form == "bf16" else (machine.fp8, 1)
        flops = linear_flops(rows, inputs * width, outputs * width)
        total += max(flops / rate, (size * read + 2 * written) / machine.bytes)
        if form in ("bf16", "apart") and kind != "nothing":
            total += 4 * read / machine.bytes  # LayerNorm or GELU
        if form == "apart":
            total += max(3 * read / machine.bytes, APART[inputs * width] * read / ISSUED) + 4 * written / machine.bytes
        if form == "fused":
            total += max(3 * read / machine.bytes, ROUNDED[kind] * read / ISSUED)
    return 1e3 * total


def linears_table(machine: Machine = H200) -> str:
    """Forms of a block's linear layers at 32 views, as Markdown."""
    names = {
        "bf16": "bfloat16",
        "apart": "FP8, every step a pass of its own",
        "fused": "FP8, norm and GELU rounded in one pass, bias inside the product",
        "products": "FP8, products alone",
    }
    times = {form: block_milliseconds(form, 32, machine) for form in names}
    rows = [f"| {name} | {times[form]:.2f} | {times['bf16'] / times[form]:.2f} |" for form, name in names.items()]
    return "\n".join(["| linear layers of a block, 32 views | ms | times faster |", "| --- | ---: | ---: |", *rows])


if __name__ == "__main__":
    print(table(), linears_table(), sep="\n\n")
