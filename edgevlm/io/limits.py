"""The largest numbers that are taken from files, each with the largest real model known and room above it.

Whatever is read from a checkpoint, a bundle, an adapter, a picture or a data file is compared with these before
anything is allocated by it: files come from strangers. docs/security.md has the table; a test holds the two together.
"""

from __future__ import annotations

# Files, in bytes.
CONFIG_FILE = 8 << 20  # config.json and the processor's files: Gemma 3's tokenizer_config.json has 1.2 MB
TOKENIZER_FILE = 64 << 20  # tokenizer.json: Gemma 3's has 33 MB
INDEX_FILE = 32 << 20  # model.safetensors.index.json: DeepSeek-V3's has 9 MB
SPEC_FILE = 1 << 20  # preprocess.json and prompt.json: 2 kB
MANIFEST_FILE = 16 << 20  # manifest.json and weights.json: 44 kB of the default model's 14 layers
BUNDLE_FILES = 4096  # of a bundle on the Hub: 60 with three targets
CARD_FILE = 4 << 20  # README.md of a repository on the Hub: 20 kB
RESULT_FILE = 64 << 20  # figures of an evaluation or a benchmark: 20 kB
DATA_FILE = 2 << 30  # a suite's JSON: 400 MB of VQA v2, read whole
LINE = 16 << 20  # one line of a .jsonl file: a conversation of some kB
SAFETENSORS_HEADER = 16 << 20  # 100 bytes per tensor; DeepSeek-V3's 90,000 tensors in one file would have 9 MB
GRAPH_FILE = 128 << 20  # an ONNX graph or CoreML program without its weights: 43 kB of 8 layers
GRAPH_FIELDS = 2 << 20  # protobuf fields in one: 4,694 of 8 layers
GGUF_HEADER = 64 << 20  # keys and tensor entries, the vocabulary among them: 16 MB of Gemma 3
GGUF_KEYS = 4096  # in one file: edgevlm writes 32
GGUF_LIST = 2 << 20  # items of a list: the 514,906 merges of Gemma 3

# JSON.
JSON_DEPTH = 64  # objects and lists inside each other: 8 in a manifest
JSON_BYTES_PER_CONTAINER = 32  # an object takes up to 250 bytes in memory, and two characters in a file
DIGITS = 308  # of a whole number, so that it fits float64: 31 in a tokenizer's model_max_length

# Tensors.
TENSORS = 100_000  # in one checkpoint: DeepSeek-V3 has 91,991
TENSOR_VALUES = 1 << 32  # of one: Gemma 3 27B's embedding has 1.4 billion
DIMENSIONS = 8  # of a tensor: 5, of a convolution over frames
TENSOR_NAME = 1024  # characters: 120
OPERATIONS = 1 << 15  # in one function of a CoreML program: 681 of 6 layers
LITERAL = 1 << 22  # values of a constant inside a CoreML program: 4

# Adapters.
PATTERN = 200  # characters of a regular expression over names of modules, and of such a name: 60
PATTERNS = 10_000  # of ranks or alphas by module: 2,000 of a rank search
EXPRESSIONS = 32  # of these that are more than a name: 3

# What a model is.
LAYERS = 1000  # of a tower or a decoder: Llama 3.1 405B has 126
WIDTH = 1 << 16  # hidden_size: Llama 3.1 405B has 16384
MLP_WIDTH = 1 << 18  # intermediate_size: Llama 3.1 405B has 53248
HEADS = 1024  # Llama 3.1 405B has 128
HEAD_DIM = 1024  # Gemma 4 has 512
VOCABULARY = 1 << 20  # Gemma 3 has 262208
CONTEXT = 1 << 20  # positions: Qwen2.5-1M has 1010000
ROPE_TABLE = 1 << 27  # values of cos and sin together, context times rotated size: Qwen2.5-1M has 129 million
STATE_PER_POSITION = 1 << 20  # values of keys and values over all layers: LLaVA 1.5 13B has 409600
STATE_VALUES = 1 << 28  # carried beside keys and values, whatever the position: Qwen3.5 27B has 39 million
IMAGE_SIDE = 8192  # of a tower's square: Pixtral has 1540
INPUT_VALUES = 1 << 28  # of a CoreML encoder's input of fixed size: 4.8 million
PATCHES = 1 << 14  # of a square: PaliGemma at 896 pixels has 4096
PATCH_SIDE = 256  # of a patch: CLIP has 32
TABLE_ROWS = 1 << 16  # of a table of positions along one axis: Gemma 4 has 10240
WINDOW_SIDE = 128  # patches per side of an attention window: Qwen2.5-VL has 8
KERNEL = 64  # of a short convolution: LFM2 has 3
GRID_KERNEL = 15  # patches per side of a tower's convolution: LFM3-VL has 3
BLOCK_KINDS = 64  # different layers of one decoder: Gemma 3 has 2
PROJECTOR_STEPS = 32  # of a projector: Qwen2.5-VL has 6
SHUFFLE = 64  # neighbours per side that become one token: 4
POSITION_AXES = 3  # of M-RoPE: time, row, column

# What a picture becomes.
VIEW_SIDE = 16384  # pixels of an edge that a picture is scaled to: SmolVLM has 4096
VIEWS = 1024  # of one picture: Idefics3 makes 145 of the largest one
GRID_TILES = 256  # that a rule may ask for: InternVL has 40
STAGES = 16  # of a tower of convolutions: FastVLM has 5
TAPS = 64  # layers of a tower whose states are used: VipLLaVA has 5
GRIDS = 1024  # that a rule chooses from: LLaVA-OneVision has 36
NATIVE_PIXELS = 1 << 25  # of a view near the picture's own size: Qwen3-VL has 16.8 million
PICTURE_TOKENS = 1 << 20  # of one picture: more than any context holds
FRAMES = 768  # of one video in a prompt: as many as Qwen2-VL takes; SmolVLM2 takes 64
GROUP = 16  # frames that a tower takes as one view: Qwen2-VL takes 2
FRAME_RATE = 1000.0  # frames per second: slow motion has 960
VIDEO_FRAMES = 1 << 19  # of one file: two hours at 60 per second have 432,000

# Text.
STREAMS = 8  # of states beside each other: Gemma 3n has 4
DEVIATIONS = 16  # from the mean of a gate's values to where they begin to count: Gemma 3n has 1.6
MARKERS = 64  # tokens around a picture that have embeddings of their own: Ovis2 has 5
TEXT = 1 << 16  # characters of any text of a bundle's JSON files: system prompts have some thousand
PICTURE_TEXT = 1024  # characters around a picture or a tile: SmolVLM has 43
ROLES = 16  # of a conversation: system, user, assistant, tool
STOP_TOKENS = 256  # Llama 3 has 3
COUNT = (1 << 31) - 1  # any other whole number: what int32 holds, as token ids do
BOXES = 1000  # and points of one answer: a crowded picture has 100
LABEL = 256  # characters of a box's label: 40

# What an answer is asked to look like.
SCHEMA = 1 << 17  # bytes of a JSON Schema: those of programming interfaces have 20 kB
MULTIPLE = 10_000  # of multipleOf in one, without its zeros and decimal point: 0.01 is 1
CHOICES = 10_000  # texts of which an answer may be one: iNaturalist has 10,000 species
CHOICE = 1024  # characters of one: a name has 50
REGEX = 1 << 13  # characters of a regular expression for an answer: 100
STOPS = 16  # texts that end an answer: OpenAI takes 4
STOP = 256  # characters of one: 20

# Numbers.
REAL = 1e18  # of a number without a natural bound: float32 holds its square root with room
