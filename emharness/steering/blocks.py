"""Where the decoder blocks of a model are, in transformers and in vLLM alike, and where their residual stream is."""

import ast
import inspect
import re
import sys
import textwrap
from functools import cache
from typing import Any, Literal

import torch

Stream = Literal["sum", "first"]  # of a block's outputs: hidden + residual, or the first one alone

# Blocks that carry several streams side by side: there is no one residual to edit.
_SEVERAL_STREAMS = {"Gemma3nForCausalLM", "Gemma3nForConditionalGeneration"}
_BLOCKS = (re.compile(r"(DecoderLayer|Block)$"), re.compile(r"Layer$"))  # what they are called; the second if not so


def decoder_layers(model: torch.nn.Module, n_layers: int) -> torch.nn.ModuleList:
    """The one list of `n_layers` decoder blocks, of a multimodal model those of its language model. RuntimeError if
    there is none, or more than one."""
    for part in ("get_language_model", "get_decoder"):  # as vLLM, as transformers has it
        model = getattr(model, part, lambda whole=model: whole)()
    lists = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == n_layers
    }
    called = [module for name, module in lists.items() if name.endswith("layers")] or list(lists.values())
    found = {tuple(map(id, module)): module for module in called}  # Gemma 4 has its blocks in two lists
    if len(found) != 1:
        raise RuntimeError(f"found {len(found)} lists of {n_layers} decoder layers in {type(model).__name__}")
    return called[0]


@cache
def stream_of(block: type) -> Stream | None:
    """Where a block's outputs hold the residual stream, read from its forward method; None where that is not clear.

    vLLM's usual blocks return (hidden, residual), still to be added; some (StableLM, Cohere) return the same two after
    they have added them, and others (GPT-2, Granite; Gemma 4 beside None) return the stream alone.
    """
    parsed = _parse_forward(block).body
    if not parsed:
        return None
    function = parsed[0]
    returned = [node.value for node in ast.walk(function) if isinstance(node, ast.Return)]
    if not returned:
        return None
    kinds: set[Stream | None] = {_stream_of_expr(value, function) for value in returned}
    return kinds.pop() if len(kinds) == 1 else None


def repeats_blocks(model: type) -> bool:
    """Whether a model's forward method goes over its blocks several times a pass: a loop over them within a loop."""
    loops = [node for node in ast.walk(_parse_forward(model)) if isinstance(node, ast.For | ast.While)]
    within = [node for loop in loops for node in ast.walk(loop) if node is not loop and isinstance(node, ast.For)]
    return any("layers" in ast.unparse(inner.iter) for inner in within)


def rescales_stream(block: type, dtype: torch.dtype) -> bool:
    """Whether a block holds its stream at another scale in this type, as DeepSeek V2's do in float16 lest it overflows;
    read from its forward method."""
    return dtype == torch.float16 and "torch.float16" in _forward_source(block)


def _parse_forward(kind: type) -> ast.Module:
    """Its forward method; an empty module where there is none to read."""
    try:
        return ast.parse(_forward_source(kind))
    except SyntaxError:
        return ast.Module([], [])


def _forward_source(block: type) -> str:
    """Of its forward method; empty where there is none to read."""
    try:
        return textwrap.dedent(inspect.getsource(inspect.unwrap(block.forward)))  # type: ignore[attr-defined]
    except (OSError, TypeError, AttributeError):
        return ""


def _stream_of_expr(value: ast.expr | None, function: Any) -> Stream | None:
    if isinstance(value, ast.Name) and isinstance(named := _last_assigned(value.id, function), ast.Tuple):
        value = named
    if not isinstance(value, ast.Tuple):  # of a call it is not known what it returns: DeepSeek V4's are four tensors
        return "first" if isinstance(value, ast.Name | ast.BinOp) else None
    if len(value.elts) == 1:
        return "first"
    if len(value.elts) != 2 or not isinstance(value.elts[0], ast.Name):
        return None
    if isinstance(value.elts[1], ast.Constant) and value.elts[1].value is None:
        return "first"
    if not isinstance(value.elts[1], ast.Name):
        return None
    hidden, second = value.elts[0].id, value.elts[1].id
    if "residual" not in second:
        return None
    last = _last_assigned(hidden, function)
    added = last is not None and _adds_residual(last)
    if _takes_residual(function) == added:  # what a block returns is what the next one is given
        return None
    return "first" if added else "sum"


def _last_assigned(name: str, function: Any) -> ast.expr | None:
    """What is put into a variable in the last line that does so."""
    assigned = [
        node
        for node in ast.walk(function)
        if isinstance(node, ast.Assign)
        and any(isinstance(target, ast.Name) and target.id == name for target in node.targets)
    ]
    last = max(assigned, key=lambda node: node.lineno, default=None)  # walked level by level, not line by line
    return None if last is None else last.value


def _takes_residual(function: Any) -> bool:
    """Whether a forward method reads the residual that it is given, before it puts another in its place."""
    parameters = [*function.args.args, *function.args.kwonlyargs]
    name = next((one.arg for one in parameters if "residual" in one.arg), None)
    for statement in function.body:
        named = [node for node in ast.walk(statement) if isinstance(node, ast.Name) and node.id == name]
        if any(isinstance(node.ctx, ast.Load) for node in named):
            return True
        if named and isinstance(statement, ast.Assign):
            return False
    return False


def _adds_residual(value: ast.expr) -> bool:
    """Whether an expression is a sum with the residual as a term."""
    if isinstance(value, ast.BinOp) and isinstance(value.op, ast.Add):
        return _adds_residual(value.left) or _adds_residual(value.right)
    return isinstance(value, ast.Name) and "residual" in value.id


def why_not_editable(model_config: Any) -> str | None:
    """Why a model's residual stream cannot be edited, or None; told from vLLM's source, without the weights."""
    names = list(model_config.architectures or ["unknown"])
    if _SEVERAL_STREAMS & set(names):
        return f"{names[0]} has several residual streams side by side"
    if model_config.is_multimodal_model:
        return None  # which language model it holds is told from the blocks themselves, when they are there
    try:
        model, _ = model_config.registry.resolve_model_cls(names, model_config=model_config)
    except Exception as error:
        return f"{names[0]} is not a model that vLLM finds ({type(error).__name__})"
    return _why_refused(model, names[0])


def _defining_files(kind: type) -> set[str]:
    """vLLM's files of models in which a class and those that it is made from are."""
    return {c.__module__ for c in kind.__mro__ if re.match(r"vllm\.(.*\.)?models\.", c.__module__)}


def _file_modules(places: set[str]) -> list[type[torch.nn.Module]]:
    """The modules that these files name, their own and others'."""
    known = [c for place in sorted(places) for c in vars(sys.modules[place]).values() if isinstance(c, type)]
    return [c for c in known if issubclass(c, torch.nn.Module)]


@cache
def _why_refused(model: type, name: str) -> str | None:
    if "transformers" in model.__module__.split("."):  # vLLM's backend for models that it has no code of its own for
        return None  # told from the blocks themselves, when they are there
    places = _defining_files(model)  # Phi-3 is Llama's class …
    inner = [c for c in _file_modules(places) if c.__module__ in places]
    if any(map(repeats_blocks, inner)):
        return f"{name} goes through its blocks several times for a token"
    modules = _file_modules(
        places.union(*map(_defining_files, inner))
    )  # … and that in a LongCat Ngram is one of LongCat
    called = [[c for c in modules if name.search(c.__name__)] for name in _BLOCKS]
    if not any(stream_of(block) for block in called[0] or called[1]):
        return f"how {name} hands its residual stream from block to block is not known"
    return None
