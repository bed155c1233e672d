"""Sizes and recipe of SweetTok; the defaults are the release's."""

from __future__ import annotations

from dataclasses import dataclass, field

from sweettok.config import choice, pattern, positive
from sweettok.data.preprocess import Preprocessing
from sweettok.proxy.config import BlockConfig, ProxyConfig
from sweettok.tokenizer.layout import LOOKUPS


@dataclass(frozen=True)
class WordsConfig:
    """Sizes of the four word lists; null: as in the prior. A number must match the prior."""

    adjectives: int | None = None  # words of the spatial branch's modifiers
    nouns: int | None = None  # words of the spatial branch's heads
    adverbs: int | None = None  # words of the temporal branch's modifiers
    verbs: int | None = None  # words of the temporal branch's heads


TEMPORAL_SOURCES = ("differences", "first_frame_residuals", "tube_differences")


@dataclass(frozen=True)
class TokenizerConfig:
    """SweetTok: decoupled query autoencoder (DQAE) and language codebooks (MLC) over the proxy's code grid."""

    proxy: ProxyConfig = field(default_factory=ProxyConfig)
    block: BlockConfig = field(default_factory=BlockConfig)
    # Layer norms before and after the linear embedding of patches (release). The first removes brightness and contrast
    # of each patch, which must then be guessed: without them, small models train faster and better.
    patch_norm: bool = True
    encoder_spatial: str = "ttwwtttt"  # layers of the spatial encoder: "t" full attention, "w" windows; ends in "t"
    encoder_temporal: str = "tttt"  # layers of the temporal encoder
    decoder_spatial: str = "tttttttt"  # layers of the decoder within a time slice; ends in "t"
    decoder_temporal: str = "tttt"  # blocks of the decoder that attend to the temporal latents
    spatial_query_grid: tuple[int, int] = (16, 16)  # rows and columns of spatial queries
    num_null_kv: int = 2  # learned key-value pairs of the decoder's cross-attention
    # Add sine and cosine positions of the time slices in the decoder, which otherwise tells them apart only by the zero
    # padding of its convolutions (release).
    slice_positions: bool = False
    # Rotary positions in the cross-attention of the spatial queries to the patches, and of the decoder to the spatial
    # latents. Without them (release), where a query belongs must be learned, which takes long.
    cross_positions: bool = False
    head_hidden: int = 1024  # hidden width of the layer that predicts the proxy's codes
    words: WordsConfig = field(default_factory=WordsConfig)
    # Words of a query: "modifiers_and_head", the nearest modifiers and the nearest head word (release), or "union", the
    # nearest word of its two lists together (paper).
    lookup: str = "modifiers_and_head"
    modifiers_per_query: int = 2  # modifiers of a query with lookup "modifiers_and_head"
    # Codes of the words: "mlc", graph convolutions over the word vectors, with a list of words for each branch (paper,
    # release); "language", a linear layer over the word vectors, one list of all words for both branches; or "learned",
    # free vectors, for which words are names only. The last two are for comparison.
    codebook: str = "mlc"
    codebook_dim: int = 256  # width of a word's code
    graph_hidden: int = 256  # hidden width of the graph convolutions over the words
    graph_dropout: float = 0.5  # dropout between them while training
    # How the patch grid becomes tokens: "dqae", queries of two branches (paper, release); or for comparison, with as
    # many tokens, "flat_queries", one set of queries that see all patches, or "linear", down-sampling by linear layers.
    compression: str = "dqae"
    # Input of the spatial branch: "all_slices", averaged over time (release), or the "first_frame" (paper).
    spatial_source: str = "all_slices"
    # Input of the temporal branch: "differences" of consecutive time slices (release), "first_frame_residuals",
    # differences to the first slice (paper), or "tube_differences". The first slice has an embedding of its own, so
    # with the first two the difference to it contains appearance; in the last one a tube of the repeated first frame
    # takes its place, and a clip that does not move has differences of zero.
    temporal_source: str = "differences"
    # What is decoded: all time slices "together" (release), or the "first_frame" from the spatial tokens alone, and the
    # later slices from it and the temporal tokens (paper).
    decoder_order: str = "together"
    # From logits to pixels: "expected" code vector (stage 2), "argmax", the likeliest code (stage 1), or "none".
    pixel_path: str = "expected"
    # How clips are made from files by default; training sets it from its `data` settings
    preprocessing: Preprocessing = field(default_factory=Preprocessing)

    def __post_init__(self):
        object.__setattr__(self, "spatial_query_grid", tuple(self.spatial_query_grid))
        if len(self.spatial_query_grid) != 2 or min(self.spatial_query_grid) < 1:
            raise ValueError(f"tokenizer.spatial_query_grid must be two sizes; got {list(self.spatial_query_grid)}")
        positive(self, "tokenizer", "head_hidden", "modifiers_per_query", "codebook_dim", "graph_hidden")
        if not 0 <= self.graph_dropout < 1:
            raise ValueError(f"tokenizer.graph_dropout must be in [0, 1); got {self.graph_dropout}")
        if self.num_null_kv < 0:
            raise ValueError(f"tokenizer.num_null_kv must be at least 0; got {self.num_null_kv}")
        pattern("tokenizer.encoder_spatial", self.encoder_spatial, "tw")
        pattern("tokenizer.decoder_spatial", self.decoder_spatial, "tw")
        pattern("tokenizer.encoder_temporal", self.encoder_temporal, "t")
        pattern("tokenizer.decoder_temporal", self.decoder_temporal, "t")
        choice("tokenizer.lookup", self.lookup, LOOKUPS)
        if self.lookup == "union" and self.modifiers_per_query != type(self).modifiers_per_query:
            raise ValueError(
                "with tokenizer.lookup union a query gives one word: leave tokenizer.modifiers_per_query out; "
                f"got {self.modifiers_per_query}"
            )
        choice("tokenizer.spatial_source", self.spatial_source, ("all_slices", "first_frame"))
        choice("tokenizer.temporal_source", self.temporal_source, TEMPORAL_SOURCES)
        choice("tokenizer.decoder_order", self.decoder_order, ("together", "first_frame"))
        choice("tokenizer.compression", self.compression, ("dqae", "flat_queries", "linear"))
        choice("tokenizer.codebook", self.codebook, ("mlc", "language", "learned"))
        choice("tokenizer.pixel_path", self.pixel_path, ("expected", "argmax", "none"))
        self._check_variants()
        if len(self.decoder_spatial) % len(self.decoder_temporal):
            raise ValueError(
                f"tokenizer.decoder_spatial has {len(self.decoder_spatial)} layers, which the "
                f"{len(self.decoder_temporal)} layers of decoder_temporal do not divide"
            )
        for name in ("encoder_spatial", "decoder_spatial"):
            if getattr(self, name).endswith("w"):
                raise ValueError(
                    f"tokenizer.{name} must end in t: window layers have no cross-attention, so nothing would use "
                    f"the last layer; got {getattr(self, name)!r}"
                )
        self.check_clip(self.num_frames, self.height, self.width)
        self._check_windows()

    def _check_variants(self) -> None:
        if self.codebook == "language" and self.lookup != "union":
            raise ValueError(
                "tokenizer.codebook language has one list of words, so a query gives one word: set tokenizer.lookup to "
                f"union; got {self.lookup}"
            )
        if self.compression == "dqae":
            return
        for name in ("spatial_source", "temporal_source", "decoder_order", "cross_positions"):
            if getattr(self, name) != getattr(type(self), name):
                raise ValueError(
                    f"tokenizer.{name} is a setting of the two branches of tokenizer.compression dqae: leave it out "
                    f"with {self.compression}; got {getattr(self, name)}"
                )
        rows, columns = self.spatial_query_grid
        if self.compression == "linear" and (self.grid[1] % rows or self.grid[2] % columns):
            raise ValueError(
                f"with tokenizer.compression linear, tokenizer.spatial_query_grid {rows}x{columns} must divide the "
                f"latent grid, which is {self.grid[1]}x{self.grid[2]}"
            )

    def _check_windows(self) -> None:
        if "w" not in self.encoder_spatial + self.decoder_spatial:
            return
        size = self.block.window_size
        grids = {"latent grid": self.grid[1:], "tokenizer.spatial_query_grid": self.spatial_query_grid}
        for name, (rows, columns) in grids.items():
            if rows % size or columns % size:
                hint = ""
                if name == "latent grid":
                    hint = f": height and width must be multiples of {self.proxy.patch_size * size}"
                raise ValueError(f"{name} {rows}x{columns} does not divide into windows of {size}x{size}{hint}")

    def check_clip(self, num_frames: int, height: int, width: int) -> None:
        """Raise ValueError for clips of a shape that does not fit, also for images; the message names one that does."""
        if (height, width) != (self.height, self.width):
            raise ValueError(
                f"frames are {height}x{width}, but this tokenizer's tables are for {self.height}x{self.width}: "
                f"resize the clip (read_clip does) or take at_size({height}, {width})"
            )
        self.proxy.check_clip(num_frames, height, width)
        if self.compression == "linear" and num_frames != self.num_frames:
            raise ValueError(
                f"tokenizer.compression linear takes clips of {self.num_frames} frames only; got {num_frames}"
            )
        if num_frames == 1:
            raise ValueError(
                f"one frame has no motion to tokenize: at least {1 + self.proxy.temporal_patch_size} frames are needed"
            )

    @property
    def num_frames(self) -> int:
        return self.proxy.num_frames

    @property
    def height(self) -> int:
        return self.proxy.height

    @property
    def width(self) -> int:
        return self.proxy.width

    @property
    def grid(self) -> tuple[int, int, int]:
        """Latent grid (t, h, w) of a clip of the configured length."""
        return self.proxy.grid(self.num_frames, self.height, self.width)

    @property
    def query_grids(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of the queries of each branch; both grids cover the whole frame."""
        return {"spatial": self.spatial_query_grid, "temporal": self.grid[1:]}

    @property
    def latent_dim(self) -> int:
        """Width of a query's latent: one code, or a modifier half and a head half."""
        return self.codebook_dim if self.lookup == "union" else 2 * self.codebook_dim

    @property
    def num_spatial_queries(self) -> int:
        return self.spatial_query_grid[0] * self.spatial_query_grid[1]

    @property
    def num_temporal_queries(self) -> int:
        """One query for each position of the latent grid."""
        return self.grid[1] * self.grid[2]
