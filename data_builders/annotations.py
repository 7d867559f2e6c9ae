"""Makes the actions of one subset from the entries of an annotation file, and notes what was not read as it is written."""

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tsp_jax import groundtruth
from tsp_jax.system import tables, texts

_SHOWN = 10


@dataclasses.dataclass(frozen=True, order=True)
class Action:
    """An action in a video, exactly as it was annotated.

    Attributes:
      start_sec: second of the video at which the action begins.
      end_sec: second of the video at which the action ends.
      label: the action's class.
    """

    start_sec: float
    end_sec: float
    label: str


# The actions of each video in their annotated order, by the video's name as the annotations write it.
Actions = dict[str, list[Action]]


@dataclasses.dataclass(frozen=True)
class Entry:
    """What an annotation file says of a video in one place.

    Attributes:
      where: the place in the file, such as "line 3".
      video: the video's name as the file writes it.
      subset: the subset that the file gives the video; empty if it gives none, and None if a fault hides it.
      action: an action in the video; None if the entry only says that the video is annotated, or not.
      is_annotated: whether the file has annotations for the video, perhaps an empty list of them.
      remark: what was read in another way than written, for all entries alike, such as "a label that is a number is read as
        text"; empty if nothing was.
      fault: the reason why the entry can't be used; empty if it can.
    """

    where: str
    video: str
    subset: str | None
    action: Action | None = None
    is_annotated: bool = True
    remark: str = ""
    fault: str = ""


@dataclasses.dataclass(frozen=True)
class Annotations:
    """The annotations of one subset.

    Attributes:
      actions: the actions of each annotated video, in the order of the entries.
      notes: what was read in another way than written, or passed over; each is a sentence for the user.
    """

    actions: Actions
    notes: tuple[str, ...]


def choose(path: Path, entries: Iterable[Entry], subset: str | None, labels: Sequence[str] = ()) -> Annotations:
    """Returns the annotations of a subset.

    Labels that differ only in blanks, in case or in how accents are encoded are one class, over all subsets of the file.

    Args:
      path: the annotation file, for messages.
      entries: all entries of the file.
      subset: the subset's name in any case, or a synonym such as `val` for `validation`; None for all entries.
      labels: labels whose spelling wins, such as those of a mapping. They are never unified with each other.

    Raises:
      ValueError: an entry of the subset has a fault, or the subset is missing or has no action.
    """
    entries, notes = list(entries), []
    chosen, others = entries, []
    if subset is not None:
        taken = _subsets(path, entries, subset, notes)
        chosen = [entry for entry in entries if entry.subset is None or entry.subset in taken]
        others = [entry for entry in entries if not (entry.subset is None or entry.subset in taken)]
    tables.refuse(path, [f"{entry.where}: {entry.fault}" for entry in chosen if entry.fault], "correct them in the file")
    bad = [entry for entry in others if entry.fault]
    if bad:
        notes.append(f"{len(bad)} bad entries of other subsets are passed over, such as {bad[0].where}: {bad[0].fault}")
    without = {entry.video for entry in others if entry.subset == "" and not entry.fault}
    if without:
        notes.append(f"{len(without)} videos have no subset and are left out, such as {min(without)}")
    remarks = collections.Counter(entry.remark for entry in chosen if entry.remark)
    notes += [f"{remark} ({count} times)" for remark, count in remarks.items()]
    spelling = _one_spelling([entry.action.label for entry in entries if entry.action], labels)
    changed = collections.Counter(entry.action.label for entry in chosen if entry.action)
    notes += _spelling_notes({label: count for label, count in changed.items() if spelling[label] != label}, spelling)
    actions: Actions = {}
    for entry in chosen:
        if entry.is_annotated:
            of_video = actions.setdefault(entry.video, [])
            if entry.action:
                of_video.append(dataclasses.replace(entry.action, label=spelling[entry.action.label]))
    unannotated = {entry.video for entry in chosen} - set(actions)
    if not any(actions.values()):
        videos = len(unannotated | set(actions))
        raise ValueError(
            f"{path}: no action{'' if subset is None else f' of subset {subset!r}'}"
            f"{f'; its {videos} videos have no annotations, as those of a test subset often' if videos else ''}"
        )
    if unannotated:
        notes.append(f"{len(unannotated)} videos are listed without annotations and are left out, such as {min(unannotated)}")
    return Annotations(actions, tuple(notes))


def alike(labels: Iterable[str]) -> list[list[str]]:
    """Returns the groups of labels that differ only in blanks, in case or in how accents are encoded."""
    groups = collections.defaultdict(list)
    for label in dict.fromkeys(labels):
        groups[_key(label)].append(label)
    return [group for group in groups.values() if len(group) > 1]


def _subsets(path: Path, entries: Sequence[Entry], subset: str, notes: list[str]) -> set[str]:
    """Returns the names in the file that mean a subset, and appends to `notes` if they are written in another way."""
    found = collections.Counter(entry.subset for entry in entries if entry.subset)
    synonyms = next((set(names) for names in groundtruth.SUBSETS if _key(subset) in names), {_key(subset)})
    same = [name for name in found if _key(name) == _key(subset)]
    similar = [name for name in found if _key(name) != _key(subset) and _key(name) in synonyms]
    if not same and len({_key(name) for name in similar}) > 1:
        raise ValueError(f"{path}: subset {subset!r} may be {' or '.join(map(repr, sorted(similar)))}; name one of them")
    taken = set(same or similar)
    if not taken:
        faults = [f"{entry.where}: {entry.fault}" for entry in entries if entry.subset is None]
        tables.refuse(path, faults, "correct them in the file")
        names = ", ".join(sorted(found)[:_SHOWN]) or ("none" if entries else "no videos")
        hint = '; a JSON entry names it by "subset", a CSV in the column subset' if entries and not found else ""
        raise ValueError(f"{path}: no video of subset {subset!r}; found {names}{hint}")
    if taken != {subset}:
        notes.append(f"subset {subset!r} is read from {', '.join(map(repr, sorted(taken)))}")
    if same and similar:
        notes.append(f"subset {', '.join(map(repr, sorted(similar)))} is another one here, and is left out")
    return taken


def _one_spelling(labels: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """Returns the spelling to use for each label: the known one, otherwise the most frequent one, otherwise the first."""
    exact, known_alike = set(known), collections.defaultdict(list)
    for label in known:
        known_alike[_key(label)].append(label)
    counts = collections.Counter(labels)
    by_key: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for label, count in counts.items():
        by_key[_key(label)][texts.clean(label)] += count
    spelling = {}
    for label in counts:
        cleaned, candidates = texts.clean(label), known_alike.get(_key(label), ())
        if label in exact or cleaned in exact:
            spelling[label] = label if label in exact else cleaned
        elif candidates:
            spelling[label] = candidates[0] if len(candidates) == 1 else cleaned
        else:
            spelling[label] = by_key[_key(label)].most_common(1)[0][0]
    return spelling


def _spelling_notes(changed: Mapping[str, int], spelling: Mapping[str, str]) -> list[str]:
    if not changed:
        return []
    shown = [f"{label!r} ({count}) as {spelling[label]!r}" for label, count in list(changed.items())[:_SHOWN]]
    more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
    return [
        f"labels that differ only in blanks, case or accents' encoding are one class: {', '.join(shown)}{more}; "
        "to keep them apart, give --labels a mapping that has both"
    ]


def _key(text: str) -> str:
    return texts.clean(text).casefold()
