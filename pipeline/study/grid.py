"""The grid file: which students are trained, from which experts and stores."""

import copy
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.distill.settings import PLAIN
from pipeline.errors import FD3DError
from pipeline.profile import Profile, parse_profile
from pipeline.settings import mapping, merged, read_yaml
from pipeline.study.checks import name_of, names_of, seeds_of
from pipeline.study.hashes import deciding, resolved_config, sha256, short_hash
from pipeline.study.overrides import FAMILY, check_effect, for_family, over
from pipeline.study.training import EXPERT, SPLITS, VAL, Expert, Params, Row, Training

_ROW_KEYS = {"method", "store", "expert"}
_OVERRIDES = {"distill", "methods", "families"}
_GRID_KEYS = {"profile", "runs", "table", "experts", "stores", "experiments"}
_GROUP_KEYS = {"families", "seeds", "rows", "store", "split"}
# settings of a training that do not decide its result
_INCIDENTAL = {
    "workers",
    "checkpoint_every",
    "cache_mb",
    "snapshots",
    "validate_every",
    "validate_scenes",
    "tensorboard",
}


class Grid:
    """A grid file and the profile that it stands on.

    Args:
        path: grid file, see ``docs/sweep.md``.

    Raises:
        FD3DError: a file is missing, or a name in it is unknown.
    """

    def __init__(self, path: Path) -> None:
        values = mapping(read_yaml(path), str(path), _GRID_KEYS)
        for key in sorted(_GRID_KEYS):
            if key not in values:
                raise FD3DError(f"{path} has no '{key}'")
        for key in ("profile", "runs", "table"):
            if not isinstance(values[key], str) or not values[key].strip():
                raise FD3DError(f"{path}: {key} is {values[key]!r:.80}; it must be a path")
        self.profile_path = Path(values["profile"])
        self.profile = read_yaml(self.profile_path)
        parse_profile(self.profile, self.profile_path)
        self.runs, self.table = Path(values["runs"]), Path(values["table"])
        self.experts = {
            name_of(name, "a name in experts"): mapping(v, f"experts.{name}", ("snapshot", "config"))
            for name, v in mapping(values["experts"], "experts").items()
        }
        for name, expert in self.experts.items():
            steps, config = expert.get("snapshot", 1), expert.get("config", "a path")
            if type(steps) is not int or steps < 1 or not isinstance(config, str) or not config.strip():
                raise FD3DError(f"experts.{name} is {expert!r:.80}; snapshot is a number from 1 on, config a path")
        self.stores = {
            name_of(name, "a name in stores"): mapping(v, f"stores.{name}", ("focal", "dump"))
            for name, v in mapping(values["stores"], "stores").items()
        }
        if not self.experts:
            raise FD3DError(f"{path} has no experts")
        self.trainings = self._trainings(mapping(values["experiments"], "experiments"))
        for training in self.trainings:
            self._check(training)

    @property
    def index(self) -> Path:
        """The frame index."""
        return Path(self.profile["data"]["index"])

    def _trainings(self, groups: Params) -> list[Training]:
        """All trainings, those of a lower seed first, experts before students."""
        found: dict[str, Training] = {}
        lines: set[tuple[Any, ...]] = set()
        for training, row in self._expanded(groups):
            line = (row.group, row.row, training.family, training.seed)
            if line in lines:
                raise FD3DError(
                    f"experiments.{row.group}.rows has '{row.row}' twice; row names are unique in a group, whose experts have "
                    f"rows of their own: '{EXPERT}' and '{EXPERT}-NAME'"
                )
            lines.add(line)
            found.setdefault(training.identity(), training).rows.append(row)
        return sorted(found.values(), key=lambda t: (t.seed, t.method != EXPERT))

    def _expanded(self, groups: Params) -> Iterator[tuple[Training, Row]]:
        for group, body in groups.items():
            name_of(group, "a group's name in experiments")
            where = f"experiments.{group}"
            body = mapping(body, where, _GROUP_KEYS)
            seeds = seeds_of(body.get("seeds", [0]), f"{where}.seeds")
            split = self._split(body.get("split", VAL), f"{where}.split")
            families = names_of(body.get("families", list(self.profile["families"])), f"{where}.families")
            for family in families:
                if family not in self.profile["families"]:
                    raise FD3DError(f"{where}.families: unknown family '{family}' in {self.profile_path}")
                used: dict[str, None] = {}
                students = []
                rows = mapping(body.get("rows"), f"{where}.rows")
                if not rows:
                    raise FD3DError(f"{where} has no rows; give at least one row, or leave the group out")
                for name, row in rows.items():
                    name_of(name, f"a row's name in {where}.rows")
                    for training, label, expert in self._row(
                        f"{where}.rows.{name}", name, row, family, body.get("store")
                    ):
                        used[expert] = None
                        students += [(training, Row(group, label, split, expert), seed) for seed in seeds]
                for expert in used:
                    train = self.profile["families"][family]["expert"].get("train") or {}
                    label = EXPERT if expert == self._first_expert else f"{EXPERT}-{expert}"
                    of_expert = Row(group, label, split, expert)
                    yield Training(family, EXPERT, train.get("seed", 0), expert, None, {}), of_expert
                for training, of_student, seed in students:
                    made = Training(family, training.method, seed, training.expert, training.store, training.overrides)
                    yield made, of_student
            for name, row in rows.items():
                for family in mapping(row, f"{where}.rows.{name}").get("families") or {}:
                    if family in self.profile["families"] and family not in families:
                        # values that are wrong must not wait for the day when the group trains this family
                        for training, label, expert in self._row(
                            f"{where}.rows.{name}", name, row, family, body.get("store")
                        ):
                            training.rows.append(Row(group, label, split, expert))
                            self._check(training)

    def _split(self, split: Any, where: str) -> str:
        """Split of a group; refused where the profile's data does not name it."""
        if split not in SPLITS:
            raise FD3DError(f"{where} is {split!r:.80}; use {' or '.join(SPLITS)}")
        if not self.profile["data"].get(split):
            raise FD3DError(f"{where} is {split}, but {self.profile_path} has no data.{split}; name a split there")
        return split

    @property
    def _first_expert(self) -> str:
        return next(iter(self.experts))

    def _same_weights(self, expert: str) -> str:
        """The first expert with an expert's weights: corrupted experts differ from it in their config alone."""
        snapshot = self.experts[expert].get("snapshot")
        return next(name for name, values in self.experts.items() if values.get("snapshot") == snapshot)

    def _row(
        self, where: str, name: str, row: Any, family: str, store: str | None
    ) -> Iterator[tuple[Training, str, str]]:
        """A row's trainings with their labels and experts: one, or one for each of its experts."""
        row = mapping(row, where, _ROW_KEYS | _OVERRIDES)
        method = name_of(row.get("method", name), f"{where}.method")
        overrides = self._overrides(where, row, family)
        recipe = row.get("store", store)
        if recipe is not None and name_of(recipe, f"{where}.store") not in self.stores:
            raise FD3DError(f"unknown store '{recipe}' in {where}; known: {', '.join(self.stores)}")
        if method == PLAIN:
            recipe = None
        elif recipe is None:
            raise FD3DError(f"{where} has no store, which method '{method}' reads; known: {', '.join(self.stores)}")
        several = isinstance(row.get("expert"), list)
        named = row.get("expert", self._first_expert)
        for expert in names_of(named, f"{where}.expert") if several else [name_of(named, f"{where}.expert")]:
            if expert not in self.experts:
                raise FD3DError(f"unknown expert '{expert}' in {where}; known: {', '.join(self.experts)}")
            read = self._same_weights(expert) if method == PLAIN else expert
            label = f"{name}-{expert}" if several else name
            yield Training(family, method, 0, read, recipe, overrides), label, expert

    def _overrides(self, where: str, row: Params, family: str) -> Params:
        """A row's values for a family: those of ``FAMILY`` under ``families`` first, those of the family's name on top."""
        profile, pair = self.profile, self.profile["families"][family]
        distill = merged(profile.get("distill") or {}, pair.get("distill") or {})
        found = {"distill": over(row.get("distill"), distill, f"{where}.distill")}
        found["methods"] = over(row.get("methods"), profile.get("methods"), f"{where}.methods")
        base = pair | {"distill": merged(distill, found["distill"])}
        own: Params = {}
        by_name = mapping(row.get("families"), f"{where}.families", {FAMILY, *profile["families"]})
        for name, values in by_name.items():
            check_effect(mapping(values, f"{where}.families.{name}"), f"{where}.families.{name}")
        for name in (FAMILY, family):
            own = merged(own, over(by_name.get(name), merged(base, own), f"{where}.families.{name}"))
        found["families"] = {family: own} if own else {}
        return for_family({key: values for key, values in found.items() if values}, family)

    def _check(self, training: Training) -> None:
        """Parse all settings of a training, and see that its expert's config is there and its store one that its method reads.

        Raises:
            FD3DError: naming the row.
        """
        try:
            profile = self.parsed(training)
            if "config" in self.experts[training.expert]:
                config = self.expert(training.family, training.expert).config
                if not config.is_file():
                    raise FD3DError(f"config {config} of expert '{training.expert}' does not exist")
            if training.method == EXPERT:
                return
            settings = profile.method(training.method, profile.family(training.family))
            if getattr(settings, "compares_maps", False) and profile.dump.layout != "dense":
                raise FD3DError(
                    f"{training.method} compares whole maps, but store '{training.store}' is of layout {profile.dump.layout}"
                )
        except FD3DError as error:
            first = training.rows[0]
            raise FD3DError(f"experiments.{first.group}.rows.{first.row}: {error}") from error

    def parsed(self, training: Training) -> Profile:
        """The profile of a training, its settings parsed."""
        values = self.params(training)
        # the expert of the sweep's own run may not be there yet, and is checked when it is needed
        values["families"][training.family][EXPERT]["config"] = self.profile["families"][training.family][EXPERT][
            "config"
        ]
        return parse_profile(values, self.profile_path)

    def trained_expert(self, family: str) -> Path:
        """Folder of the profile's expert, trained or taken by ``fd3d expert``."""
        return self.runs / family / EXPERT

    def expert(self, family: str, name: str) -> Expert:
        """Config and weights of an expert; its files may not be there yet."""
        folder, values = self.trained_expert(family), for_family(self.experts[name], family)
        steps = values.get("snapshot")
        return Expert(
            name,
            Path(values["config"]) if "config" in values else folder / "config.py",
            folder / ("detector.pth" if steps is None else f"detector-{steps}.pth"),
            steps is None,
        )

    def store_folder(self, family: str, expert: str, recipe: str) -> Path:
        """Folder of a store (``store``) and of what made it."""
        return self.runs / family / "stores" / (recipe if expert == self._first_expert else f"{recipe}-{expert}")

    def params(self, training: Training) -> Params:
        """The parameters file of a training: the profile of one family, its expert as resolved, and the overrides."""
        out = copy.deepcopy(self.profile)
        pair = out["families"][training.family]
        if self.needs_expert(training):
            expert = self.expert(training.family, training.expert)
            pair[EXPERT] = pair[EXPERT] | {"config": str(expert.config), "checkpoint": str(expert.checkpoint)}
        # a family's own settings of FD3D would otherwise win over the row's
        out["distill"] = merged(out.get("distill") or {}, pair.get("distill") or {})
        out["families"] = {training.family: pair | {"distill": {}}}
        out = merged({"focal": {}, "dump": {}} | out, training.overrides)
        return merged(out, self.stores[training.store]) if training.store else out

    def needs_expert(self, training: Training) -> bool:
        """Whether a training reads the expert's store or weights."""
        methods = merged(self.profile.get("methods") or {}, training.overrides.get("methods", {}))
        return training.method != PLAIN or bool(methods.get(PLAIN))

    def store_hash(self, family: str, expert: str, recipe: str) -> str:
        """Hash of everything that decides a store's contents.

        Raises:
            FileNotFoundError: the index or the expert is not there yet.
            FD3DError: the expert's config cannot be read.
        """
        profile = self.parsed(Training(family, "", 0, expert, recipe, {}))
        return short_hash(
            {
                "index": sha256(self.index),
                "split": profile.data.train,
                "expert": self._expert_facts(family, expert),
                "dump": asdict(profile.dump),
            }
        )

    def _expert_facts(self, family: str, name: str) -> Params:
        expert = self.expert(family, name)
        return {"checkpoint": sha256(expert.checkpoint), "config": resolved_config(expert.config)}

    def config_hash(self, training: Training, split: str) -> str:
        """Hash of everything but the code that decides a training's result on a split, 12 hexadecimal digits.

        Resolved configs, parsed settings with their defaults, seed, the names of the splits, the index's and the expert's
        SHA-256, and what decides the store's contents.

        Args:
            split: ``val`` or ``dev``.

        Raises:
            FileNotFoundError: the index or the expert is not there yet.
            FD3DError: a config cannot be read.
        """
        profile = self.parsed(training)
        facts: Params = {
            "family": training.family,
            "method": training.method,
            "seed": training.seed,
            "index": sha256(self.index),
            "splits": [profile.data.train, profile.data.source(split).split],
        }
        if training.method == EXPERT:
            return short_hash(facts | {"expert": self._expert_facts(training.family, training.expert)})
        family = profile.family(training.family)
        run = {k: v for k, v in asdict(family.apprentice.train).items() if k not in {*_INCIDENTAL, "seed"}}
        facts |= {"train": run, "config": resolved_config(family.apprentice.config)}
        if family.apprentice.init:
            facts["init"] = sha256(family.apprentice.init)
        if self.needs_expert(training):
            facts["expert"] = self._expert_facts(training.family, training.expert)
        facts["settings"] = deciding(profile.method(training.method, family))
        if training.store:
            facts["store"] = self.store_hash(training.family, training.expert, training.store)
        return short_hash(facts)


def chosen(
    trainings: Iterable[Training],
    groups: Collection[str],
    families: Collection[str],
    rows: Collection[str],
    seeds: Collection[int],
) -> list[Training]:
    """Trainings that a choice names; an empty choice of a kind names all.

    Raises:
        FD3DError: a group, family, row or seed is not in the grid, or no training has all that is chosen.
    """
    trainings = list(trainings)
    known: dict[str, tuple[Collection[Any], set[Any]]] = {
        "group": (groups, {row.group for t in trainings for row in t.rows}),
        "family": (families, {t.family for t in trainings}),
        "row": (rows, {row.row for t in trainings for row in t.rows}),
        "seed": (seeds, {t.seed for t in trainings}),
    }
    for kind, (wanted, have) in known.items():
        for name in wanted:
            if name not in have:
                raise FD3DError(f"the grid has no {kind} '{name}'; it has {', '.join(map(str, sorted(have)))}")
    found = [
        t
        for t in trainings
        if (not families or t.family in families)
        and (not seeds or t.seed in seeds)
        and any((not groups or r.group in groups) and (not rows or r.row in rows) for r in t.rows)
    ]
    if trainings and not found:
        told = [f"{kind} {', '.join(map(str, wanted))}" for kind, (wanted, _) in known.items() if wanted]
        raise FD3DError(f"the grid has no training of {' and '.join(told)}")
    return found
