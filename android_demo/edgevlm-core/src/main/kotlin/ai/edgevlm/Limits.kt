package ai.edgevlm

/**
 * The largest numbers that are taken from files, as in Python's `edgevlm/io/limits.py`, which says why each is what
 * it is. A test of the Python side holds the two lists together.
 */
internal object Limits {
    // Files, in bytes.
    const val TOKENIZER_FILE = 64 shl 20
    const val SPEC_FILE = 1 shl 20
    const val MANIFEST_FILE = 16 shl 20
    const val BUNDLE_FILES = 4096

    // JSON.
    const val JSON_DEPTH = 64
    const val JSON_BYTES_PER_CONTAINER = 32
    const val DIGITS = 308

    // What a model is.
    const val LAYERS = 1000
    const val BLOCK_KINDS = 64
    const val PROJECTOR_STEPS = 32
    const val MLP_WIDTH = 1 shl 18
    const val STATE_PER_POSITION = 1 shl 20
    const val STATE_VALUES = 1 shl 28
    const val HEAD_DIM = 1024
    const val VOCABULARY = 1 shl 20
    const val WIDTH = 1 shl 16
    const val CONTEXT = 1 shl 20
    const val ROPE_TABLE = 1 shl 27
    const val IMAGE_SIDE = 8192
    const val PATCHES = 1 shl 14
    const val PATCH_SIDE = 256
    const val TABLE_ROWS = 1 shl 16
    const val SHUFFLE = 64
    const val POSITION_AXES = 3

    // What a picture becomes.
    const val VIEW_SIDE = 16384
    const val VIEWS = 1024
    const val GRID_TILES = 256
    const val GRIDS = 1024
    const val NATIVE_PIXELS = 1 shl 25
    const val PICTURE_TOKENS = 1 shl 20
    const val FRAMES = 768
    const val GROUP = 16
    const val FRAME_RATE = 1000.0
    const val BOXES = 1000
    const val LABEL = 256

    // Text.
    const val TEXT = 1 shl 16
    const val PICTURE_TEXT = 1024
    const val ROLES = 16
    const val MARKERS = 64
    const val STOP_TOKENS = 256
    const val STOPS = 16
    const val STOP = 256
    const val COUNT = Int.MAX_VALUE

    // Numbers.
    const val REAL = 1e18
}
