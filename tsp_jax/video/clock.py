"""When each frame is shown: the packets' timestamps, mended where they restart, repeat or are absent. numpy alone, pure."""

import dataclasses
import itertools
from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int64

from tsp_jax import clips

_RESTART_SEC = 0.1  # decoding times of one recording do not go back by more (FFmpeg's own threshold)
_MAX_DELAY_SEC = 5.0  # from a frame's decoding to its showing
_MAX_REORDER = 17  # one more than the packets between which H.264 and HEVC reorder
# A longer step ahead is a clock that was set, not a hole. FFmpeg takes 10 s for MPEG streams; other files keep their clock.
_MAX_HOLE_SEC = {True: 10, False: 3600}
_HOLE_SEC, _HOLE_FRAMES = 2.0, 10  # a longer time without a frame is worth a note
_NEAR_FRAMES, _NEAR = 1.5, 2e-5  # header and timestamps may part by so many frames, or by this share of the length
_FAR_START_SEC = 60.0
_MAX_TAIL_SEC = 10.0  # for which empty chunks at an AVI file's end may repeat the last picture
_MPEG = frozenset({"mpegts", "mpeg"})
_WITH_DURATIONS = frozenset({"mp4", "matroska", "avi", "asf"})  # their headers know how long the video is
_USUAL_FRAMES = 10  # at the end, whose spacing is that of the last frame
# By how much the header may promise more than there is, in seconds, as a share and in frames.
_SHORT_SEC, _SHORT, _SHORT_FRAMES = 1.0, 0.02, 2.5
_MAX_PARTS = 10_000
_MAX_STAMP = 1 << 60  # a damaged file may have any; sums of two stay within 64 bits
_LISTED = 3  # jumps of the clock in a message


@dataclasses.dataclass
class Stamps:
    """What the packets of a stream say, in the file's order; a list has one element a packet.

    Attributes:
      pts: presentation timestamps; None where the file gives none.
      dts: decoding timestamps; None where the file gives none.
      durations: how long each frame is shown, as far as the file or FFmpeg knows; 0 if unknown.
      hidden: whether an edit list hides the frame.
    """

    pts: list[int | None] = dataclasses.field(default_factory=list)
    dts: list[int | None] = dataclasses.field(default_factory=list)
    durations: list[int] = dataclasses.field(default_factory=list)
    hidden: list[bool] = dataclasses.field(default_factory=list)

    def add(self, pts: int | None, dts: int | None, duration: int, hidden: bool) -> None:
        """Adds a packet."""
        self.pts.append(pts)
        self.dts.append(dts)
        self.durations.append(duration)
        self.hidden.append(hidden)


@dataclasses.dataclass(frozen=True)
class Header:
    """What a file's header says of the video stream.

    Attributes:
      formats: FFmpeg's names of the file format.
      time_base: seconds in one unit of the timestamps.
      rate: frames a second; 0 if unknown.
      frames: number of frames; 0 if unknown.
      end: timestamp at which the video ends; None if unknown.
      alone: whether the file has no other stream, so that the file's length is the video's.
      whole: whether the file is as long as its headers say, and no packet was unreadable.
      orders_decoding: whether the presentation timestamps may be decoding timestamps in disguise.
    """

    formats: frozenset[str]
    time_base: Fraction
    rate: Fraction
    frames: int
    end: int | None
    alone: bool
    whole: bool
    orders_decoding: bool


@dataclasses.dataclass(frozen=True, eq=False)
class Dates:
    """When the frames of a stream are shown.

    Attributes:
      timeline: when each frame is shown.
      dated: whether a packet's timestamp is that of its frame. If not, the timeline holds for frames in the decoder's order.
      packet_pts: timestamp to give each packet, so that its frame is known by it: its place if the stream is not `dated`, else
        the mended time; None if the file's own will do.
      joints: places of the packets with which a new recording begins, other than the first.
      shared: a flag for each packet that says whether the file gives its frame the time of another.
      notes: what is odd but read rightly, a line each.
      fault: what can't be given right; empty if nothing.
    """

    timeline: clips.Timeline
    dated: bool
    packet_pts: Int64[np.ndarray, " n"] | None
    joints: frozenset[int]
    shared: Bool[np.ndarray, " n"]
    notes: tuple[str, ...]
    fault: str


def date(stamps: Stamps, header: Header, shown: Bool[np.ndarray, " n"] | None = None) -> Dates:
    """Returns when each frame is shown.

    The parts of a file whose clock restarts follow each other. Frames of one time share the time up to the next one. Where a
    file has only decoding timestamps, frames take them in ascending order; where it has none, frames are spaced evenly.

    Args:
      stamps: the packets' timestamps.
      header: what the file's header says.
      shown: a flag for each packet that says whether it shows a frame; None takes those that no edit list hides.

    Raises:
      ValueError: no packet shows a frame, or neither header nor timestamps give a frame rate.
    """
    shown = ~np.asarray(stamps.hidden, bool) if shown is None else shown
    if not shown.any():
        raise ValueError("the video stream has no frames")
    notes: list[str] = []
    faults: list[str] = []
    pts, dts = _known(stamps.pts), _known(stamps.dts)
    shared = np.zeros(len(shown), bool)
    packet_pts, jumps = None, []
    dated = bool(np.all(pts.known[shown])) and not (header.orders_decoding and bool(np.all(np.diff(pts.values[shown]) > 0)))
    if dated:
        own = pts
        if header.formats == {"avi"} and np.all(dts.known) and bool(np.all(np.diff(pts.values[shown]) > 0)):
            # AVI stores decoding times alone. FFmpeg dates a frame by the next one, which is right where the rate is constant.
            pts = _Times(pts.known, dts.values + int(np.min((pts.values - dts.values)[shown])))
        # Matroska stores no decoding times. What FFmpeg makes up in their place goes astray where the clock restarts.
        mended, jumps = _follow(pts, None if "matroska" in header.formats else dts, shown, header)
        spread, shared[shown] = _spread(mended[shown])
        mended[shown] = spread
        packet_pts = None if np.array_equal(mended[own.known], own.values[own.known]) else mended
        times, last = np.sort(spread), int(np.flatnonzero(shown)[np.argmax(spread)])
    elif np.all(dts.known[shown]):
        notes.append("the file has only decoding times; frames take them in the order in which the decoder gives them")
        mended, jumps = _follow(dts, dts, shown, header)
        times, last = np.sort(_spread(mended[shown])[0]), int(np.flatnonzero(shown)[-1])
        packet_pts = np.arange(len(shown))
    else:
        notes.append(f"the file gives its frames no times; they are taken to be evenly spaced at {float(header.rate):g} fps")
        times, last = _evenly(int(np.count_nonzero(shown)), header), None
        packet_pts = np.arange(len(shown))
    timeline = _timeline(times, 0 if last is None else stamps.durations[last], last is None, header)
    _describe_jumps(jumps, int(times[0]), header, notes, faults)
    if np.any(shared):
        count = int(np.count_nonzero(shared))
        notes.append(f"{count} of {len(times)} frames share their time with another; they are shown one after the other")
    _describe_length(timeline, len(shown), bool(shown.all()) and not jumps, header, notes, faults)
    return Dates(timeline, dated, packet_pts, frozenset(jump.place for jump in jumps), shared, tuple(notes), "; ".join(faults))


class _Times(NamedTuple):
    """Timestamps of packets; `values` is 0 where they are not `known`."""

    known: Bool[np.ndarray, " n"]
    values: Int64[np.ndarray, " n"]


class _Jump(NamedTuple):
    """The place of a packet at which the clock jumps by so many units, and the mended time of the first frame from there on."""

    place: int
    units: int
    time: int


def _known(stamps: Sequence[int | None]) -> _Times:
    known = np.array([value is not None for value in stamps], bool)
    values = np.array([value or 0 for value in stamps], np.int64)
    return _Times(known, np.clip(values, -_MAX_STAMP, _MAX_STAMP))


def _follow(
    pts: _Times, dts: _Times | None, shown: Bool[np.ndarray, " n"], header: Header
) -> tuple[Int64[np.ndarray, " n"], list[_Jump]]:
    """Returns the presentation times, shifted so that each part begins where the one before ends, and the jumps between parts.

    A part begins where the clock goes back, or ahead by more than a hole may last.
    """
    clock = pts if dts is None else dts
    back, reorder = (0, _MAX_REORDER) if dts is None else (_units(_RESTART_SEC, header), 1)
    ahead = _units(_MAX_HOLE_SEC[bool(header.formats & _MPEG)], header)
    places = np.flatnonzero(clock.known)
    starts = [0, *(int(places[at]) for at in _restarts(clock.values[places], back, ahead, reorder))]
    if dts is not None:
        pts = _near_decoding(pts, dts, starts[1:], header)
    mended, jumps = pts.values.copy(), []
    end = raw_end = 0
    for start, stop in itertools.pairwise([*starts, len(shown)]):
        # A decoder may lose frames at a joint; those have their time all the same.
        times = np.sort(pts.values[start:stop][pts.known[start:stop]])
        if not (shown[start:stop] & pts.known[start:stop]).any():
            continue
        shift = 0
        if start:
            shift = end - int(times[0])
            mended[start:stop] += shift
            jumps.append(_Jump(start, int(times[0]) - raw_end, end))
        raw_end = int(times[-1]) + _spacing(times, header)
        end = raw_end + shift
    return mended, jumps


def _near_decoding(pts: _Times, dts: _Times, restarts: Sequence[int], header: Header) -> _Times:
    """Returns presentation times, as late after decoding as usual where they are far from it before a restart.

    For the last packet before the clock restarts FFmpeg may take the time of the first one after it. Elsewhere a frame may be
    shown long after it is decoded, for it is decoded before a hole if frames that are shown before the hole refer to it.
    """
    delay = pts.values - dts.values
    both = pts.known & dts.known
    far = both & (np.abs(delay) > _units(_MAX_DELAY_SEC, header))
    wrong = np.zeros(len(far), bool)
    wrong[[restart - 1 for restart in restarts]] = True
    wrong &= far
    if not wrong.any() or far[both].all():
        return pts
    usual = int(np.median(delay[both & ~far]))
    return _Times(pts.known, np.where(wrong, dts.values + usual, pts.values))


def _restarts(values: Int64[np.ndarray, " n"], back: int, ahead: int, reorder: int) -> list[int]:
    """Returns the places at which a new part of the clock begins, besides the first."""
    found, start = [], 0
    while True:
        part = values[start:]
        highest = np.maximum.accumulate(part)
        jumps = np.zeros(len(part), bool)
        jumps[reorder:] = part[reorder:] < highest[:-reorder] - back
        jumps[1:] |= part[1:] > highest[:-1] + ahead
        if not jumps.any() or len(found) >= _MAX_PARTS:
            return found
        start += int(np.argmax(jumps))
        found.append(start)


def _spread(pts: Int64[np.ndarray, " n"]) -> tuple[Int64[np.ndarray, " n"], Bool[np.ndarray, " n"]]:
    """Returns times of which no two are equal, in the same order, and which of them were equal to another."""
    order = np.argsort(pts, kind="stable")
    times = pts[order]
    is_first = np.append(True, np.diff(times) > 0)
    if is_first.all():
        return pts, ~is_first
    first, place = np.flatnonzero(is_first), np.arange(len(times))
    counts = np.diff(np.append(first, len(times)))
    gaps = np.diff(times[first])
    room = np.append(gaps, np.median(gaps) if len(gaps) else 0).astype(np.int64) // counts
    moved = times + (place - np.repeat(first, counts)) * np.repeat(np.maximum(room, 1), counts)
    moved = np.maximum.accumulate(moved - place) + place
    spread, shared = np.empty_like(pts), np.empty(len(pts), bool)
    spread[order], shared[order] = moved, np.repeat(counts > 1, counts)
    return spread, shared


def _evenly(count: int, header: Header) -> Int64[np.ndarray, " count"]:
    return np.round(np.arange(count) / (float(_rate(header)) * float(header.time_base))).astype(np.int64)


def _timeline(times: Int64[np.ndarray, " n"], own_duration: int, even: bool, header: Header) -> clips.Timeline:
    """Returns the timeline with the header's rate, or, where it does not agree with the times, with theirs."""
    if even:
        rate = float(_rate(header))
        return clips.Timeline(times, header.time_base, rate, len(times) / rate)
    units = int(times[-1] - times[0]) + _last_duration(times, own_duration, header)
    duration_sec = float(units * header.time_base)
    rate = float(header.rate)
    # Where a file is cut off, frames are missing before the last ones too, as many as are reordered.
    near_frames = _NEAR_FRAMES if header.whole else _MAX_REORDER
    if rate <= 0 or abs(len(times) / rate - duration_sec) > max(near_frames / rate, _NEAR * duration_sec):
        rate = len(times) / duration_sec
    return clips.Timeline(times, header.time_base, rate, duration_sec)


def _last_duration(times: Int64[np.ndarray, " n"], own: int, header: Header) -> int:
    """Returns for how many units the last frame is shown.

    MP4 stores that. In AVI, empty chunks at the end repeat the picture. Elsewhere it is the usual time between the last frames.
    """
    if "mp4" in header.formats and own > 0:
        return own
    if "avi" in header.formats and header.whole and header.end is not None:
        tail = header.end - int(times[-1])
        if 0 < tail * header.time_base <= _MAX_TAIL_SEC:
            return tail
    return _spacing(times[-_USUAL_FRAMES:], header)


def _spacing(times: Int64[np.ndarray, " n"], header: Header) -> int:
    """Returns the usual time between frames in units, at least 1."""
    if len(times) > 1:
        return max(1, round(float(np.median(np.diff(times)))))
    return max(1, round(1 / (_rate(header) * header.time_base)))


def _rate(header: Header) -> Fraction:
    if header.rate <= 0:
        raise ValueError("the file gives no frame rate")
    return header.rate


def _units(seconds: float, header: Header) -> int:
    return round(seconds / float(header.time_base))


def _describe_jumps(jumps: Sequence[_Jump], first: int, header: Header, notes: list[str], faults: list[str]) -> None:
    leaps = [] if header.formats & _MPEG else [jump for jump in jumps if jump.units > 0]
    joints = [jump for jump in jumps if jump not in leaps]

    def listed(some: Sequence[_Jump]) -> str:
        text = ", ".join(f"{float((jump.time - first) * header.time_base):.2f}" for jump in some[:_LISTED])
        return f"{text} s" + (f" and {len(some) - _LISTED} more times" if len(some) > _LISTED else "")

    if joints:
        notes.append(f"recordings joined at {listed(joints)}: the clock starts again there, and they follow each other")
    if leaps:
        total_sec = float(sum(jump.units for jump in leaps) * header.time_base)
        faults.append(f"the clock leaps ahead by {total_sec:.2f} s at {listed(leaps)}; seconds are counted without it")


def _describe_length(
    timeline: clips.Timeline, num_packets: int, comparable: bool, header: Header, notes: list[str], faults: list[str]
) -> None:
    """Compares header and timestamps."""
    unit = float(timeline.time_base)
    seconds = (timeline.pts - timeline.pts[0]) * unit
    if abs(timeline.pts[0] * unit) >= _FAR_START_SEC:
        notes.append(f"the clock starts at {timeline.pts[0] * unit:.2f} s; seconds count from there")
    if header.rate and timeline.fps != float(header.rate):
        nominal = f"the nominal rate is {float(header.rate):.2f} fps"
        notes.append(f"{nominal}; by the frames' times it is {timeline.fps:.2f} on average")
    gaps = np.diff(seconds)
    holes = np.flatnonzero(gaps > max(_HOLE_SEC, _HOLE_FRAMES * float(np.median(gaps)))) if len(gaps) else []
    if len(holes):
        longest = int(holes[np.argmax(gaps[holes])])
        total = f"{len(holes)} hole{'s' if len(holes) > 1 else ''} without frames, {gaps[holes].sum():.2f} s in all"
        notes.append(f"{total}, the longest {gaps[longest]:.2f} s from {seconds[longest]:.2f} s on; the picture before is held")
    if not (comparable and header.whole and header.formats & _WITH_DURATIONS):
        return
    if "avi" not in header.formats and header.frames > num_packets:  # AVI counts empty chunks too
        faults.append(f"the header promises {header.frames} frames, the file has {num_packets}")
    elif header.end is not None:
        end_sec = float((header.end - timeline.pts[0]) * timeline.time_base)
        if end_sec - timeline.duration_sec > max(_SHORT_SEC, _SHORT * end_sec, _SHORT_FRAMES / timeline.fps):
            if header.alone:
                faults.append(f"the header promises {end_sec:.2f} s, the pictures last {timeline.duration_sec:.2f} s")
            else:
                notes.append(f"the file lasts {end_sec:.2f} s, its pictures {timeline.duration_sec:.2f} s")
