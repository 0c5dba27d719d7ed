"""Recipes that no one should write, given to `calibrate.py --recipe`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from random import Random

import yaml

from benchmarks.campaign.driver import Case, Outcome, run_area
from benchmarks.campaign.mutations import flipped, json_mutations, spliced, truncated
from benchmarks.campaign.sample import tests_on_path, tiny_checkpoint

RECIPES = Path(__file__).resolve().parents[2] / "q8trt" / "recipes"
_HEAD = "name: x\nsites:\n  context: {}\n"
#: Files that are no recipe in the eyes of anyone.
_HOSTILE: dict[str, str | bytes] = {
    "empty": "",
    "null": "null",
    "text": "hello",
    "number": "5",
    "list": "[]",
    "two documents": f"{_HEAD}---\n{_HEAD}",
    "bomb of aliases": "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 40)),
    "bomb in sites": "s: &s0 {a: 1}\n" + "".join(f"k{n}: &s{n} [*s{n - 1}, *s{n - 1}]\n" for n in range(1, 30)) + _HEAD,
    "alias to itself": "name: x\nsites: &s {linear_input: *s}\n",
    "unknown alias": "name: *x\nsites: {}\n",
    "date as name": "name: 2026-11-27\nsites:\n  gelu_out: {}\n",
    "date in a site": f"{_HEAD}  gelu_out: 2026-11-27\n",
    "time": f"{_HEAD}  gelu_out: {{amax: 2026-11-27T10:00:00Z}}\n",
    "binary": f"{_HEAD}  gelu_out: !!binary aGVsbG8=\n",
    "set": "name: x\nsites: !!set {gelu_out, context}\n",
    "object": "!!python/object/apply:os.system ['true']\n",
    "unknown tag": f"{_HEAD}  gelu_out: !x y\n",
    "5,000 digits": f"{_HEAD}smoothquant: {'9' * 5000}\n",
    "5,000 digits as bits": f"name: x\nsites:\n  gelu_out: {{num_bits: {'9' * 5000}}}\n",
    "huge exponent": f"{_HEAD}smoothquant: 1e999999\n",
    "hexadecimal": f"{_HEAD}smoothquant: 0x{'f' * 4000}\n",
    "sexagesimal": f"{_HEAD}smoothquant: {':'.join(['59'] * 2000)}\n",
    "nested lists": "name: " + "[" * 5000 + "\n",
    "nested objects": "name: " + "{a: " * 3000 + "\n",
    "nested indents": "".join(f"{' ' * n}a:\n" for n in range(1500)),
    "NaN": f"{_HEAD}smoothquant: .nan\n",
    "infinity": f"{_HEAD}smooth_residuals: .inf\n",
    "NaN percentile": "name: x\nsites:\n  gelu_out: {calibrator: percentile, percentile: .nan}\n",
    "NaN amax": "name: x\nsites:\n  gelu_out: {calibrator: fixed, amax: .nan}\n",
    "NaN decay": f"{_HEAD}qat: {{ranges: ema, ema_decay: .nan}}\n",
    "unknown key": f"{_HEAD}colour: red\n",
    "unknown site": "name: x\nsites:\n  nose: {}\n",
    "bomb of merges": "a0: &a0 {k: v}\n"
    + "".join(f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}\n" for n in range(1, 40)),
    "merge key": "a: &a {name: x}\n<<: *a\nsites: {gelu_out: {}}\n",
    "merge of itself": "a: &a\n  <<: *a\nname: x\nsites: {gelu_out: {}}\n",
    "merge of a number": "<<: 3\nname: x\n",
    "huge layer": f"{_HEAD}  layer.{10**30}.gelu_out: {{}}\n",
    "5,000 digits of a layer": f"{_HEAD}  layer.{'9' * 5000}.gelu_out: {{}}\n",
    "layer of other digits": f"{_HEAD}  layer.٣.gelu_out: {{}}\n",
    "layers without end": f"name: x\nsites:\n  gelu_out: {{layers: [{10**30}]}}\n",
    "layers as text": "name: x\nsites:\n  gelu_out: {layers: '0'}\n",
    "layers of booleans": "name: x\nsites:\n  gelu_out: {layers: [true]}\n",
    "negative layer": "name: x\nsites:\n  gelu_out: {layers: [-1]}\n",
    "million layers": f"name: x\nsites:\n  gelu_out: {{layers: {[0] * 10**6}}}\n",
    "keys that are numbers": "name: x\nsites: {1: {}}\n",
    "key that is a list": "name: x\nsites: {[a]: {}}\n",
    "key that is null": "name: x\nsites: {~: {}}\n",
    "the same key twice": "name: x\nname: y\nsites: {gelu_out: {}}\n",
    "same site twice": "name: x\nsites: {gelu_out: {}, gelu_out: {enabled: false}, context: {}}\n",
    "name of 10 MB": f"name: {'x' * 10**7}\nsites: {{gelu_out: {{}}}}\n",
    "name with an escape": 'name: "\\e[31mx"\nsites: {nose: {}}\n',
    "site with an escape": 'name: x\nsites: {"\\e[2J": {}}\n',
    "NUL": b"name: x\x00\n",
    "UTF-16": _HEAD.encode("utf-16"),
    "Latin-1": b"name: caf\xe9\nsites: {gelu_out: {}}\n",
    "surrogate": 'name: "\\ud800"\nsites: {gelu_out: {}}\n',
    "tabs": "name:\tx\n\tsites: {}\n",
    "all off": "name: x\nsites: {gelu_out: {enabled: false}}\n",
    "start of a start": f"{_HEAD}qat: {{start: {{sites: {{gelu_out: {{}}}}}}}}\n",
    "start that is a list": f"{_HEAD}qat: {{start: []}}\n",
    "start in itself": f"{_HEAD}qat: &q {{start: {{qat: *q}}}}\n",
    "sites as a list": "name: x\nsites: [gelu_out]\n",
    "activations as text": f"{_HEAD}activations: max\n",
    "boolean bits": "name: x\nsites: {gelu_out: {num_bits: true}}\n",
    "float bits": "name: x\nsites: {gelu_out: {num_bits: 8.0}}\n",
    "description of a list": f"{_HEAD}description: [a]\n",
}


def cases(base: Path, random: Random) -> Iterator[Case]:
    """Yield hostile files, given to the command; then damaged recipes, given to the reader."""
    checkpoint = tiny_checkpoint(base)
    tests_on_path()
    from tiny_data import write_sts_b

    data = ("--task", "STS-B", "--data_dir", write_sts_b(base / "data", 16, 8), "--max_seq_length", "32")
    command = ("calibrate", "--recipe", "r.yaml", *data, "--model_name_or_path", checkpoint, "--output_dir", "run")
    yield Case("sound", command, partial(_write, b"name: x\nsites: {gelu_out: {}}\n"), writes=("run",), expect="ok")
    for name, text in _HOSTILE.items():
        content = text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")
        yield Case(f"hostile: {name}", command, partial(_write, content), writes=("run",), seconds=60)
    for path in sorted(RECIPES.glob("*.yaml")):
        document, text = yaml.safe_load(path.read_text()), path.read_bytes()
        for name, content in json_mutations(document, random, 40):
            yield Case(f"json {path.stem} {name}", _load, partial(_write, content), _agrees, seconds=5, mib=256)
        for mutate in (flipped, truncated, spliced):
            for number in range(10):
                setup = partial(_write, mutate(text, random))
                yield Case(f"{mutate.__name__}: {path.stem} {number}", _load, setup, _agrees, seconds=5, mib=256)


def _write(content: bytes, folder: Path) -> None:
    (folder / "r.yaml").write_bytes(content)


def _load(folder: Path) -> None:
    from q8trt.quantization.recipe import Recipe, load_recipe

    recipe = load_recipe("r.yaml")
    if Recipe.from_dict(recipe.to_dict()) != recipe:
        raise AssertionError("the recipe does not survive being written")


def _agrees(outcome: Outcome, folder: Path) -> str:
    """A recipe that is taken says what its file says, as far as both are plain."""
    from q8trt.quantization.recipe import load_recipe

    document = yaml.safe_load((folder / "r.yaml").read_bytes())
    recipe = load_recipe(str(folder / "r.yaml"))
    wrong = [key for key in ("name", "smoothquant", "smooth_residuals") if document.get(key) != getattr(recipe, key)]
    return f"{wrong[0]} is {getattr(recipe, wrong[0])!r}" if wrong else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the area."""
    return run_area("recipes", cases, argv)


if __name__ == "__main__":
    sys.exit(main())
