"""Entries 86 to 91: configurations."""

from __future__ import annotations

from tests.catalogue.bench import CONFIG, Bench
from tests.catalogue.promise import Answer, Broken, recipe


def trained(bench: Bench, text: str, *overrides: str) -> Answer:
    path = bench.folder / "c.yaml"
    path.write_text(text.replace("DATA", str(bench.shared.dataset)))
    answer = bench.run(
        "train", path, "--run", bench.folder / "run", *overrides, file="c.yaml" if not overrides else ""
    )
    if (bench.folder / "run").exists():
        raise Broken("a run was opened")
    return answer


@recipe(86)
def unknown_keys(bench: Bench) -> Answer:
    text = CONFIG.replace(
        "train: {", "train:\n  lerning_rate: 0.001\n  steps: 2\nmodle: {x: 1}\nold_train: {"
    )
    answer = trained(bench, text.split("old_train")[0])
    if "modle" not in answer.text:
        raise Broken("not all mistakes at once")
    return answer


@recipe(87)
def too_small_patch(bench: Bench) -> Answer:
    return trained(bench, CONFIG, "patch.size=[8,8,8]", "model.channels=[2,2,2,2,2,2]")


@recipe(87, 1)
def indivisible_patch(bench: Bench) -> Answer:
    return bench.train(bench.shared.dataset, "patch.size=[20,20,20]", "model.channels=[2,2,2,2]")


@recipe(87, 2)
def overlap(bench: Bench) -> Answer:
    return trained(bench, CONFIG, "predict.overlap=1.0")


@recipe(87, 3)
def flat_patch(bench: Bench) -> Answer:
    return trained(bench, CONFIG, "patch.size=[8,8]")


def _value(variant: int, setting: str) -> None:
    @recipe(88, variant)
    def wrong_value(bench: Bench) -> Answer:
        return trained(bench, CONFIG, setting)


_value(0, "train.batch_size=two")
_value(1, "train.batch_size=-1")
_value(2, "train.optimizer.lr=.nan")


def _yaml(number: int, variant: int, text: str) -> None:
    @recipe(number, variant)
    def broken_yaml(bench: Bench) -> Answer:
        return trained(bench, text)


_yaml(89, 0, "name: toy\n\ttrain: 1\n")
_yaml(89, 1, "name: a\nname: b\n" + CONFIG.partition("\n")[2])
_yaml(
    89,
    2,
    "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n"
    + "".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 10))
    + CONFIG,
)
_yaml(90, 0, CONFIG + "_target_: os.system\n")
_yaml(90, 1, CONFIG + "extra: !!python/object/apply:os.system ['true']\n")


@recipe(91)
def lost_override(bench: Bench) -> Answer:
    return trained(bench, CONFIG, "trian.steps=5")
