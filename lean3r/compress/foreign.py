"""Third-party networks: an adapter says where their queries, keys, values and frames are.

Conversion keeps every module and every parameter under its name. The class of an attention layer is replaced by a
subclass (as in torch.nn.utils.parametrize) whose forward gets q, k, v from the adapter and runs a mechanism.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar, cast, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lean3r.attention.base import Mechanism, Projected
from lean3r.attention.dense import Dense
from lean3r.compress.targets import Mapped, Part, Site
from lean3r.errors import UsageError
from lean3r.types import TokenLayout

SHOWN = 5  # classes of modules in a message
M = TypeVar("M", bound=nn.Module)


class ForeignAttention(Protocol):
    """What compress has to know about a third-party network; FusedQkv and MultiHead are ready to use."""

    def sites(self, model: nn.Module) -> Iterable[Site]:
        """Its attention layers in the order of execution, each with its role, width and heads."""
        ...

    def layout(self, *inputs: Any, **named: Any) -> TokenLayout:
        """The layout of the tokens of one view, from the arguments of the network; `views` does not matter."""
        ...

    def project(self, attention: Any, *inputs: Any, **named: Any) -> Projected:
        """Queries, keys, values, norm and rotation, from the arguments of an attention layer."""
        ...

    def output(self, attention: Any, mixed: Tensor, *inputs: Any, **named: Any) -> Any:
        """What the layer returns, from mixed values [B, H, N, D] and the arguments of the layer."""
        ...


def one_role(index: int) -> Part:
    """Every block attends to all tokens that it gets."""
    return "global"


def called(model: nn.Module, suffix: str) -> list[tuple[str, nn.Module]]:
    """The modules whose path ends in `suffix`, with their paths, in order."""
    return [(name, module) for name, module in model.named_modules() if name.split(".")[-1] == suffix]


def with_roles(layers: Sequence[tuple[str, M]], role: Callable[[int], Part | None]) -> Iterator[tuple[str, M, Part]]:
    """The layers that have a role, with it."""
    for index, (name, module) in enumerate(layers):
        if (chosen := role(index)) is not None:
            yield name, module, chosen


@runtime_checkable
class FusedLayer(Protocol):
    """What FusedQkv looks for in an attention layer."""

    num_heads: int
    qkv: nn.Module
    q_norm: nn.Module
    k_norm: nn.Module
    proj: nn.Linear
    proj_drop: nn.Module


@dataclass(frozen=True)
class FusedQkv:
    """Attention layers as in DINOv2, timm and similar: qkv, q_norm, k_norm, proj, optionally rope(x, pos).

    `read_layout` returns the layout of one view from the inputs of the network, `role` the role of the n-th layer whose
    path ends in `suffix`; None leaves the layer as it is. Masks, gates and norms after attention raise UsageError.
    """

    read_layout: Callable[..., TokenLayout]
    role: Callable[[int], Part | None] = one_role
    suffix: str = "attn"

    def sites(self, model: nn.Module) -> list[Site]:
        """See ForeignAttention."""
        sites: list[Site] = []
        for name, module, role in with_roles(called(model, self.suffix), self.role):
            extra = [p for p in ("gate", "norm") if not isinstance(getattr(module, p, None), nn.Identity | None)]
            if extra or not isinstance(module, FusedLayer):
                missing = [part for part in FusedLayer.__annotations__ if not hasattr(module, part)]
                difference = f"lacks {', '.join(missing)}" if missing else f"has {', '.join(extra)}"
                raise UsageError(f"{name} ({type(module).__name__}) {difference}: write your own adapter for it.")
            sites.append(Site(name, role, module.proj.in_features, module.num_heads))
        return sites

    def layout(self, *inputs: object, **named: object) -> TokenLayout:
        """See ForeignAttention."""
        return self.read_layout(*inputs, **named)

    def project(
        self, attention: FusedLayer, x: Tensor, *unknown: object, pos: Tensor | None = None, **named: object
    ) -> Projected:
        """See ForeignAttention."""
        refuse(unknown, named)
        q, k, v = attention.qkv(x).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)

        rope = getattr(attention, "rope", None)
        own = None if rope is None or pos is None else pos[0].float()

        def finish(q: Tensor, k: Tensor, positions: Tensor | None = None) -> tuple[Tensor, Tensor]:
            q, k = attention.q_norm(q).to(v.dtype), attention.k_norm(k).to(v.dtype)
            if rope is None or pos is None:
                return q, k
            if positions is not None:  # pooled tokens, in views that repeat them; such rotations take whole patches
                views = q.shape[2] // len(positions)
                where = positions.round().to(pos).repeat(views, 1).expand(len(q), -1, -1)
            else:
                where = pos
            return rope(q, where), rope(k, where)

        return Projected(x, q, k, v, finish, positions=own)

    def output(self, attention: FusedLayer, mixed: Tensor, *inputs: object, **named: object) -> Tensor:
        """See ForeignAttention."""
        return attention.proj_drop(attention.proj(mixed.transpose(1, 2).flatten(2)))


@dataclass(frozen=True)
class MultiHead:
    """Self-attention through torch.nn.MultiheadAttention, nn.TransformerEncoder included.

    `read_layout` returns the layout of one view from the inputs of the network. Padding masks are respected, other
    masks raise UsageError. The attention weights that MultiheadAttention can return are None: mechanisms do not store
    them.
    """

    read_layout: Callable[..., TokenLayout]
    role: Callable[[int], Part | None] = one_role

    def sites(self, model: nn.Module) -> list[Site]:
        """See ForeignAttention."""
        layers = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.MultiheadAttention)]
        for name, module in layers:
            same_width = module._qkv_same_embed_dim or isinstance(module, Adopted)
            if not same_width or module.bias_k is not None or module.add_zero_attn:
                raise UsageError(f"{name} has keys of another width or extra keys: write your own adapter for it.")
        return [Site(name, role, m.embed_dim, m.num_heads) for name, m, role in with_roles(layers, self.role)]

    def layout(self, *inputs: object, **named: object) -> TokenLayout:
        """See ForeignAttention."""
        return self.read_layout(*inputs, **named)

    def project(
        self,
        attention: nn.MultiheadAttention,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> Projected:
        """See ForeignAttention."""
        refuse((), {"attn_mask": attn_mask, "is_causal": is_causal})
        if query is not key or key is not value:
            raise UsageError(
                "query, key and value differ; a converted MultiheadAttention expects the same tensor for all three."
            )
        if query.ndim != 3 or query.is_nested:
            raise UsageError(
                f"the input is {'nested' if query.is_nested else f'of {query.ndim} axes'}; "
                "a converted MultiheadAttention expects a plain batch of three axes."
            )
        x = query if attention.batch_first else query.transpose(0, 1)
        fused = F.linear(x, attention.in_proj_weight, attention.in_proj_bias)
        q, k, v = fused.unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mask = key_padding_mask
        if mask is not None:
            # In torch, True or minus infinity marks padding.
            mask = ~mask if mask.dtype == torch.bool else mask == 0
        return Projected(x, q, k, v, lambda q, k, positions=None: (q, k), mask)

    def output(self, attention: nn.MultiheadAttention, mixed: Tensor, *inputs: object, **named: object) -> tuple:
        """See ForeignAttention."""
        out = attention.out_proj(mixed.transpose(1, 2).flatten(2))
        return (out if attention.batch_first else out.transpose(0, 1)), None


def map_sites(model: nn.Module, adapter: ForeignAttention) -> None:
    """Record on a network, in place, where the adapter finds its attention layers.

    Targets such as "global blocks 8-" then select in it, for plans, adapters (LoRA), and parameters to train.
    UsageError if the adapter finds no layer, or names one that does not exist; it lists the nearest modules.
    """
    sites, modules = tuple(adapter.sites(model)), dict(model.named_modules())
    what = f"{type(adapter).__name__} finds no attention layer in {type(model).__name__}"
    absent = next((site.name for site in sites if site.name not in modules), None)
    if absent is not None:
        near = difflib.get_close_matches(absent, modules, n=3, cutoff=0.0)
        raise UsageError(f"{type(adapter).__name__} names {absent}, which is no module. Nearest: {', '.join(near)}.")
    if not sites:
        raise UsageError(f"{what}. {_nearest(modules)} Name them with its arguments, or write an adapter for them.")
    cast(Mapped, model).attention_sites = sites


def _nearest(modules: Mapping[str, nn.Module]) -> str:
    """The modules that look like attention, one of each class, with their parts."""
    kinds: dict[type, list[str]] = {}
    for path, module in modules.items():
        called = any("att" in word.lower() for word in (path.split(".")[-1], type(module).__name__))
        if path and called and next(module.parameters(), None) is not None:
            kinds.setdefault(type(module), []).append(path)
    if not kinds:
        return "None of its modules is called attention."
    shown = []
    for kind, paths in list(kinds.items())[:SHOWN]:
        parts = ", ".join(name for name, _ in modules[paths[0]].named_children()) or "no parts"
        more = f" and {len(paths) - 1} more" if len(paths) > 1 else ""
        shown.append(f"{paths[0]}{more} ({kind.__name__}: {parts})")
    return f"Nearest: {'; '.join(shown)}."


class Watch:
    """Records the layout of the inputs of a converted network at each call."""

    def __init__(self, adapter: ForeignAttention):
        self.adapter = adapter
        self.seen: TokenLayout | None = None

    def __call__(self, model: nn.Module, inputs: tuple, named: dict[str, object]) -> None:
        self.seen = self.adapter.layout(*inputs, **named)

    def layout(self, tokens: int) -> TokenLayout:
        """The layout of a sequence of `tokens` tokens; UsageError if that is no whole number of views."""
        if self.seen is None:
            raise UsageError("the layout is unknown: call the network through the module that was passed to compress.")
        views, rest = divmod(tokens, self.seen.tokens)
        if rest or not views:
            raise UsageError(
                f"an attention layer got {tokens} tokens; expected a multiple of {self.seen.tokens}, the tokens of one "
                "view in the adapter's layout."
            )
        return replace(self.seen, views=views, valid=None)


class Adopted:
    """Mixin for the class of a third-party attention layer: a forward that runs a mechanism."""

    adapter: ForeignAttention
    watch: Watch
    mechanism: Mechanism
    short: Mechanism | None
    dense_below: int

    def forward(self, *inputs: object, **named: object) -> object:
        """The layer's result, computed by the mechanism."""
        p = self.adapter.project(self, *inputs, **named)
        tokens = p.q.shape[2]
        mechanism = self.short if self.short is not None and tokens < self.dense_below else self.mechanism
        return self.adapter.output(self, mechanism(p, self.watch.layout(tokens)), *inputs, **named)


def refuse_nested_tensors(model: nn.Module) -> None:
    """Make nn.TransformerEncoder, in place, mask padding instead of cutting it off: neither mechanisms nor rounded
    linear layers take the nested tensors that the layers of an encoder would get."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False


def adopt(model: nn.Module, names: Sequence[str], adapter: ForeignAttention) -> None:
    """Make the attention layers at these paths run a mechanism, in place; at first it is dense."""
    watch = Watch(adapter)
    model.register_forward_pre_hook(watch, with_kwargs=True)
    for name in names:
        attention = model.get_submodule(name)
        kind = type(attention)
        attention.__class__ = type(f"Adopted{kind.__name__}", (Adopted, kind), {})
        assert isinstance(attention, Adopted)
        attention.adapter, attention.watch = adapter, watch
        attention.short, attention.dense_below = None, 0
        if isinstance(attention, nn.MultiheadAttention):
            # In inference, nn.TransformerEncoderLayer bypasses the forward of a layer for which this is True.
            attention._qkv_same_embed_dim = False
        attention.mechanism = Dense()


def refuse(unknown: Sequence[object], named: Mapping[str, object]) -> None:
    """Raise UsageError if a layer got arguments other than None and False that its adapter does not read."""
    given = [name for name, value in named.items() if value is not None and value is not False]
    if given or any(value is not None and value is not False for value in unknown):
        raise UsageError(f"a converted attention layer does not support {', '.join(given) or 'further arguments'}.")
