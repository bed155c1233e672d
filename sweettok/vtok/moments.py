"""Sampled frames of a video, and their features: pooled key frames and differences to them.

Letters: B clips, T sampled frames (moments), n of them together, S tokens of a key frame, P patches, C channels.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from sweettok import pixels
from sweettok.data.preprocess import Preprocessing, open_frames
from sweettok.data.reader import is_image
from sweettok.data.resize import Fit
from sweettok.video.chunks import check_least
from sweettok.video.long import one_ahead
from sweettok.vtok.config import VTokConfig, check_fps, check_key_frame
from sweettok.vtok.encoder import FrameEncoder
from sweettok.vtok.output import KEY, MOTION, FrameFeatures

KeyFrame = str | int | Callable[[Tensor], int]  # a function gets the pooled features (T, S, C) of a clip
TIE = 1 + 1e-6  # medoid: distances that differ by less are equal, and the earliest frame is taken


@dataclass(frozen=True)
class Group:
    """Some consecutive moments."""

    frames: Tensor  # (B, n, 3, H, W), float in [-0.5, 0.5]
    numbers: range  # indices of the moments
    times: Tensor  # (n,) float32, seconds

    def only(self, number: int) -> Group:
        """One of the moments alone."""
        place = [self.numbers.index(number)]
        return Group(self.frames[:, place], range(number, number + 1), self.times[place])

    def without(self, number: int) -> tuple[Tensor, Tensor]:
        """Frames and times of all moments but one, if it is among them."""
        keep = [place for place, found in enumerate(self.numbers) if found != number]
        return self.frames[:, keep], self.times[keep]


class Moments:
    """The sampled frames of a video, at the encoder's size; they can be read several times.

    Args:
        source: path of a video or image, or clips (B, 3, T, H, W), uint8 or float in [-0.5, 0.5], of any size.
        fps: frames per second; None: that of the file. One frame needs none.
        max_frames: only so many frames, after the stride, are taken.
        batch_size: frames per group, of all clips together.

    Raises ValueError for other sources, for an unknown rate, and for a video that is shorter than one motion token.
    """

    def __init__(
        self,
        source: Tensor | str | Path,
        fps: float | None,
        config: VTokConfig,
        encoder: FrameEncoder,
        how: Preprocessing,
        max_frames: int | None = None,
        batch_size: int = 32,
    ):
        check_least("max_frames", 1 if max_frames is None else max_frames)
        check_least("batch_size", batch_size)
        if fps is not None:
            check_fps(fps)
        if isinstance(source, Tensor):
            source = _check_clips(source)
        elif not isinstance(source, str | Path):
            found = type(source).__name__
            raise ValueError(f"video must be a path, a list of paths or a tensor (B, 3, T, H, W), got {found}")
        self.source, self.fps, self.config, self.encoder, self.how = source, fps, config, encoder, how
        self.max_frames, self.batch_size = max_frames, batch_size
        self._begun: Iterator[Group] | None = None

    def begin(self) -> Moments:
        """Read the first group for the next call of `groups`, to be called in a thread while others are in use."""
        groups = self.groups()
        self._begun = chain([next(groups)], groups)
        return self

    def groups(self) -> Generator[Group, None, None]:
        """All moments, in order; the next group is read while one is in use."""
        begun, self._begun = self._begun, None
        if begun is not None:
            yield from begun
            return
        with self._frames() as (frames, fps, still), closing(one_ahead(self._sampled(frames, fps, still))) as groups:
            yield from groups

    @contextmanager
    def _frames(self) -> Iterator[tuple[Iterable[Tensor], float | None, bool]]:
        """Frames (B, 3, H, W) after the stride, their rate, and whether the source is a single image."""
        stride, last = self.how.stride, None
        if self.max_frames is not None:
            last = (self.max_frames - 1) * stride + 1
        if isinstance(self.source, Tensor):
            fit = Fit(self.how.resize, tuple(self.source.shape[3:]), self.encoder.size)
            frames = islice(self.source.unbind(2)[:last], 0, None, stride)
            yield map(fit.apply, frames), self.fps and self.fps / stride, self.source.shape[2] == 1
            return
        with open_frames(self.source, self.how.resize, self.encoder.size, last) as stream:
            fps, still = self.fps or stream.fps, is_image(self.source)
            if fps is None and not still:
                raise ValueError(f"{self.source} has no frame rate: give fps=, its number of frames per second")
            frames = islice(stream.frames, 0, None, stride)
            yield (frame[None] for frame in frames), fps and fps / stride, still

    def _sampled(self, frames: Iterable[Tensor], fps: float | None, still: bool) -> Iterator[Group]:
        if fps is None and not still:
            raise ValueError("fps is unknown: a tensor has no frame rate, give fps=, its number of frames per second")
        rate = fps or 1.0  # of a still image, whose only time is 0
        places, seen, number, group, times = self.config.places(rate), 0, 0, [], []
        due = next(places)
        for frame in frames:
            if seen == due:
                group.append(frame)
                times.append(seen / rate)
                due = next(places)
            seen += 1
            if group and len(group) * len(frame) >= self.batch_size:
                yield self._group(group, number, times)
                number, group, times = number + len(group), [], []
        self.config.check_moments(number + len(group), seen, fps)
        if group:
            yield self._group(group, number, times)

    def _group(self, frames: list[Tensor], number: int, times: list[float]) -> Group:
        video = torch.stack(frames, dim=1).to(self.encoder.mean.device)
        video = pixels.to_float(video) if video.dtype == torch.uint8 else video.float()
        return Group(video, range(number, number + len(frames)), torch.tensor(times, device=video.device))

    def frame(self, number: int) -> Group:
        """The moment of an index alone. Raises ValueError if there are fewer moments."""
        count = 0
        with closing(self.groups()) as groups:
            for group in groups:
                count += len(group.numbers)
                if number in group.numbers:
                    return group.only(number)
        raise ValueError(f"key_frame {number} is not among the {count} sampled frames, 0..{count - 1}")

    def find_key(self, key_frame: KeyFrame) -> int:
        """Index of the key frame, which for "medoid" and functions must be of a single clip.

        "middle" reads the video once more; "medoid" and functions also encode it once more, and keep the pooled
        features of all moments in memory.
        """
        if not callable(key_frame):
            check_key_frame(key_frame)
        if key_frame == "first" or isinstance(key_frame, int):
            return 0 if key_frame == "first" else key_frame
        if key_frame == "middle":
            return sum(len(group.numbers) for group in self.groups()) // 2
        if key_frame == "medoid":
            features = [part.double() for part in self._pooled()]
            mean = sum(part.sum(0) for part in features) / sum(map(len, features))
            return _first_least(torch.cat([(part - mean).square().flatten(1).sum(1) for part in features]))
        features = torch.cat(list(self._pooled()))
        found = key_frame(features)
        if not isinstance(found, int) or not 0 <= found < len(features):
            raise ValueError(f"key_frame must return an index of the {len(features)} sampled frames; got {found!r}")
        return found

    def _pooled(self) -> Iterator[Tensor]:
        """Features (n, S, C) of the moments of one clip."""
        for group in self.groups():
            yield pool(self.encoder(group.frames[0]), self.config.grid)


def features(moments: Moments, key_frame: KeyFrame, patches: tuple[int, int]) -> Iterator[FrameFeatures]:
    """Features of each group of moments; the first ones begin with those of the key frame.

    Args:
        patches: grid to which differences are averaged.
    """
    if key_frame == "all":
        yield from _whole_frames(moments, patches)
        return
    encoder, first = moments.encoder, moments.find_key(key_frame)
    with closing(moments.groups()) as read:
        groups: Iterator[Group] = read
        if first == 0:
            group = next(groups)
            start, groups = group.only(0), chain((group,), groups)
        else:
            start = moments.frame(first)
        key_pixels, key_map = start.frames[:, 0], encoder(start.frames[:, 0])
        found = Found(moments.config, key_map, patches, first)
        found.key(key_map, start.times)
        for group in groups:
            frames, times = group.without(first)
            maps = encoder(frames.flatten(0, 1)).unflatten(0, frames.shape[:2]) if len(times) else key_map[:, :0, None]
            while maps.shape[1]:
                difference = maps - key_map[:, None]
                # The same pixels in another place of a batch may give features that differ by rounding.
                same = (frames == key_pixels[:, None]).flatten(2).all(2)
                difference = difference.masked_fill(same[:, :, None, None, None], 0)
                cut = found.cut(difference, key_map)
                found.motion(difference[:, :cut], times[:cut])
                if cut == maps.shape[1]:
                    break
                key_pixels, key_map = frames[:, cut], maps[:, cut]
                found.key(key_map, times[cut : cut + 1])
                frames, maps, times = frames[:, cut + 1 :], maps[:, cut + 1 :], times[cut + 1 :]
            yield found.take()


def _whole_frames(moments: Moments, patches: tuple[int, int]) -> Iterator[FrameFeatures]:
    """Features of moments that all are key frames."""
    with closing(moments.groups()) as groups:
        for group in groups:
            maps = moments.encoder(group.frames.flatten(0, 1)).unflatten(0, group.frames.shape[:2])
            found = Found(moments.config, maps[:, 0], patches, 0)
            for number in range(len(group.numbers)):
                found.key(maps[:, number], group.times[number : number + 1])
            yield found.take()


class Found:
    """Collects key frames and differences in their order."""

    def __init__(self, config: VTokConfig, key_map: Tensor, patches: tuple[int, int], key_frame: int):
        self.config, self.patches, self.key_frame = config, patches, key_frame
        self.clips, self.dim, self.device = *key_map.shape[:2], key_map.device
        self.parts: list[tuple[int, Tensor, Tensor]] = []  # kind, values, times

    def key(self, maps: Tensor, time: Tensor) -> None:
        """A key frame with the features (B, C, rows, columns)."""
        values = pool(maps, self.config.grid)
        self.parts.append((KEY, values, time.expand(values.shape[1])))

    def motion(self, differences: Tensor, times: Tensor) -> None:
        """Other moments with the differences (B, n, C, rows, columns)."""
        values = pool(differences.flatten(0, 1), self.patches)
        self.parts.append((MOTION, values.unflatten(0, differences.shape[:2]), times))

    def cut(self, differences: Tensor, key_map: Tensor) -> int:
        """Number of moments (B, n, ...) before the first that opens a segment."""
        threshold, count = self.config.segment_threshold, differences.shape[1]
        if threshold is None:
            return count
        size = pool(differences[0], self.config.grid).flatten(1).norm(dim=1)
        above = size > threshold * pool(key_map, self.config.grid).norm()
        return int(above.nonzero()[0]) if above.any() else count

    def take(self) -> FrameFeatures:
        """What was collected since the last call."""
        parts, self.parts = self.parts, []
        rows = self.patches[0] * self.patches[1]
        none = {KEY: (0, self.dim), MOTION: (0, rows, self.dim)}
        values = {kind: [torch.zeros(self.clips, *shape, device=self.device)] for kind, shape in none.items()}
        for kind, found, _ in parts:
            values[kind].append(found)
        times = torch.cat([torch.zeros(0, device=self.device), *(times for _, _, times in parts)])
        return FrameFeatures(
            key=torch.cat(values[KEY], dim=1),
            residuals=torch.cat(values[MOTION], dim=1),
            times=times.float().expand(self.clips, -1),
            kinds=torch.tensor([kind for kind, _, t in parts for _ in t], dtype=torch.int64, device=self.device),
            key_frame=torch.full((self.clips,), self.key_frame, device=self.device),
        )


def pool(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Features (N, C, rows, columns), averaged to a grid -> (N, S, C), row-major."""
    return adaptive_avg_pool2d(maps, grid).flatten(2).mT


def _first_least(distances: Tensor) -> int:
    return int((distances <= distances.min() * TIE).nonzero()[0])


def _check_clips(video: Tensor) -> Tensor:
    """Clips (B, 3, T, H, W) or images (B, 3, H, W) -> clips, unchanged. Raises ValueError for others."""
    video = pixels.as_clips(video)
    if isinstance(video, Tensor) and video.dtype == torch.uint8:  # all values are right
        pixels.check_video(video[:, :, :1] if video.ndim == 5 and video.numel() else video)
        return video
    return pixels.check_video(video)
