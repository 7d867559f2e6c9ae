"""How videos are named: the key of a video's features, and which file a name in annotations means.

All names are compared in Unicode's composed form (NFC), because macOS writes `é` into file names as two characters.
"""

import difflib
import posixpath
import unicodedata
from collections import defaultdict
from collections.abc import Iterable
from pathlib import PurePath
from typing import Literal, get_args

Rule = Literal["first_dot", "stem", "path"]
RULES: tuple[Rule, ...] = get_args(Rule)
DEFAULT: Rule = "first_dot"  # as the original names features; the released files have such names
HELP = (
    "how features are named after their video: by the file's name up to its first dot (first_dot, as in the released files), "
    "by its name without the extension (stem), or by that with the folders below --videos (path); without the flag first_dot, "
    "but two videos of one name are refused"
)
# fmt: off
EXTENSIONS = frozenset([  # endings of files that are taken for videos without a look into them
    "3g2", "3gp", "asf", "avi", "divx", "f4v", "flv", "gif", "m2t", "m2ts", "m2v", "m4v", "mkv", "mov", "mp4", "mpe", "mpeg",
    "mpg", "mpv", "mts", "mxf", "ogm", "ogv", "qt", "ts", "vob", "webm", "wmv",
])
# fmt: on
_NEAR = 0.8  # least similarity of a near miss, from 0 to 1
_Table = defaultdict[str, list[str]]


def feature_name(filename: str | PurePath, rule: Rule = DEFAULT) -> str:
    """Returns the name of a video's features, in NFC.

    Args:
      filename: the video's file, relative to the folder of videos. Only the rule `path` uses the folders.
      rule: `first_dot` gives `sub/a.b.mp4` the name `a`, `stem` gives it `a.b`, and `path` gives it `sub/a.b`.

    Source: TSP (Alwassel et al. 2021), released extraction code, for `first_dot`.
    """
    path = composed(PurePath(filename).as_posix())
    if rule == "path":
        return without_extension(path)
    name = path.rpartition("/")[2]
    return name.partition(".")[0] if rule == "first_dot" else without_extension(name)


def check_distinct(filenames: Iterable[str]) -> None:
    """Checks that the rule `first_dot` gives each video a name of its own.

    Args:
      filenames: the videos' files, relative to the folder of videos.

    Raises:
      ValueError: two videos would have one name; the message says which, and what keeps them apart.
    """
    distinct = list(dict.fromkeys(filenames))
    first: dict[str, str] = {}
    for filename in distinct:
        name = feature_name(filename)
        if (other := first.setdefault(name, filename)) == filename:
            continue
        rules: list[Rule] = [rule for rule in RULES if len({feature_name(item, rule) for item in distinct}) == len(distinct)]
        remedy = "no rule of --names keeps all videos apart; rename one of each pair, or pass --names to leave such videos out"
        if rules:
            named = [feature_name(item, rules[0]) for item in (other, filename)]
            remedy = f"pass --names {rules[0]}, which names them {named[0]!r} and {named[1]!r}"
        raise ValueError(f"{other} and {filename} would both be named {name!r}, the file's name up to its first dot; {remedy}")


def without_extension(filename: str) -> str:
    """Returns a file's name without its last ending if that is one of `EXTENSIONS` in any case, else the whole name.

    A dot in a name such as `2018-03-11.school` is part of the name.
    """
    name, dot, ending = filename.rpartition(".")
    return name if dot and name.rpartition("/")[2] and ending.lower() in EXTENSIONS else filename


def composed(name: str) -> str:
    """Returns a name in Unicode's form NFC."""
    return unicodedata.normalize("NFC", name)


class Filenames:
    """The known files of videos, among which names from annotations are looked up."""

    def __init__(self, filenames: Iterable[str]):
        """Indexes the files.

        Args:
          filenames: the files, relative to the folder of videos, as the metadata CSV has them.
        """
        self._given = frozenset(filenames)
        # The files by what each rule of `find` makes of their names.
        self._whole, self._bare, self._lower = _Table(list), _Table(list), _Table(list)
        self._first_dot, self._folded = _Table(list), _Table(list)
        for filename in sorted(self._given):
            path = normalized(filename)
            bare = without_extension(path)
            self._whole[path].append(filename)
            self._bare[bare].append(filename)
            parts = bare.split("/")
            for first in range(1, len(parts)):
                self._lower["/".join(parts[first:])].append(filename)
            self._first_dot[feature_name(path)].append(filename)
            self._folded[_folded(parts[-1])].append(filename)

    def find(self, name: str) -> list[str]:
        """Returns the files that a name from annotations means: one, none, or several if the name is ambiguous.

        Folders are separated by `/` or `\\`, and a leading `./` is ignored. The first of these rules that finds a file decides:

        1. The name is the file's.
        2. The name without its extension is the file's without its own. So `a.MOV` finds `a.mp4`, and so does `a`.
        3. The same, where the name leaves out the file's first folders.
        4. The name is the file's up to its first dot, without folders.

        By rules 2 to 4, a name also finds the file that begins with `v_` and the name, as ActivityNet names its files. A name
        that begins with `v_` and finds nothing is looked up without it, since captions of ActivityNet have such names.
        """
        if name in self._given:
            return [name]
        path = normalized(name)
        if path in self._whole:
            return list(self._whole[path])
        folder, slash, last = path.rpartition("/")
        alternatives = [path, f"{folder}{slash}v_{last}"]
        for table in (self._bare, self._lower, self._first_dot):
            keys = [*alternatives, *(map(without_extension, alternatives) if table is not self._first_dot else ())]
            found = dict.fromkeys(filename for key in keys for filename in table.get(key, ()))
            if found:
                return list(found)
        return self.find(f"{folder}{slash}{last[2:]}") if last.startswith("v_") else []

    def near(self, name: str) -> str:
        """Returns the file whose name is most like a name that `find` does not find; "" if none is alike.

        This takes up to a second with ten thousand files, so ask only for the names that a message shows.
        """
        last = _folded(without_extension(normalized(name)).rpartition("/")[2])
        alike = [last] if last in self._folded else difflib.get_close_matches(last, self._folded, 1, _NEAR)
        return self._folded[alike[0]][0] if alike else ""


def normalized(filename: str) -> str:
    """Returns a file's relative path in NFC, with `/` between folders and without `./`."""
    path = composed(filename.strip()).replace("\\", "/")
    return posixpath.normpath(path) if path else path


def _folded(name: str) -> str:
    """Returns what is left of a name without case, accents' form, blanks and punctuation."""
    return "".join(char for char in unicodedata.normalize("NFKC", name).casefold() if char.isalnum())
