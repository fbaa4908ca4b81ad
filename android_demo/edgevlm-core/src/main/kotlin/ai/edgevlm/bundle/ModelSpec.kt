package ai.edgevlm.bundle

import ai.edgevlm.Limits
import ai.edgevlm.json.Fields
import ai.edgevlm.layout.Positions
import ai.edgevlm.layout.Side
import ai.edgevlm.layout.Tower

/**
 * One tensor that a decoder carries from call to call. In [shape], null is the axis that grows.
 *
 * [kind]: how it changes. [dtype]: "float32" or "int8".
 */
public data class State(val name: String, val shape: List<Int?>, val kind: Kind, val dtype: String) {
    /** Grows along its free axis; written whole by each call; set once per prompt. */
    public enum class Kind { APPEND, REPLACE, MEMORY }
}

/** What a manifest says of its model that the code around graphs asks for; the rest of `spec` is checked, and the graphs'. */
public class ModelSpec private constructor(fields: Fields, vision: Fields, text: Fields) {
    private val projector = fields.objects("projector").map(::reduction)

    public val name: String = fields.text("name")
    public val family: String = fields.text("family")

    /** The placeholder that image features replace. */
    public val imageTokenId: Int = fields.int("image_token_id")

    /** Tokens around pictures whose embeddings in such a prompt are the bundle's own. */
    public val markers: List<Int> = fields.ints("markers")

    /** A learned row ends each row of features. */
    public val newline: Boolean = fields.flag("newline", false)

    /** With it, one more learned row each begins and ends a picture's features. */
    public val framed: Boolean = fields.flag("framed", false)

    /** One stands between the map of the tiles and the whole picture. */
    public val separator: Boolean = fields.flag("separator", false)

    /** Whether a head reads places out of the decoder's states. */
    public val hasRegion: Boolean = fields.has("region") && fields.raw("region") != null

    public val tower: Tower = fields.get("vision", Tower::read)
    public val positions: Positions = fields.get("decoder", Positions::read)

    /** Rows of the embedding table, and width of the logits. */
    public val vocabSize: Int = text.int("vocab_size")
    public val hiddenSize: Int = text.int("hidden_size")

    /** Positions, prompt and answer together. */
    public val contextLength: Int = text.int("context_length")

    /** Layers of the decoder. */
    public val layers: Int = text.ints("layers").size

    /** Values of an image token's features, which come in the place of as many of its embedding's. */
    public val featureWidth: Int = hiddenSize * (1 + text.ints("deepstack").size)

    /** Values of a row of the second table of embeddings; 0: there is none. */
    public val perLayerWidth: Int = Math.multiplyExact(text.int("per_layer", 0), layers)

    /** Values of a position that comes into the decoder. */
    public val embedWidth: Int = featureWidth + perLayerWidth

    /** Whether a call overwrites a state: it then cannot forget its last positions, only all of them. */
    public val replaces: Boolean get() = states.any { it.kind == State.Kind.REPLACE }

    /** What an engine holds between calls, in the order of layers. */
    public val states: List<State>

    init {
        val order = text.ints("layers")
        val blocks = text.objects("blocks").map { it.objects("mixers") }
        good(layers in 1..Limits.LAYERS, "it has $layers layers, expected 1 to ${Limits.LAYERS}")
        good(blocks.size in 1..Limits.BLOCK_KINDS && order.all { it < blocks.size }, "a layer of its decoder is no block")
        good(blocks.all { it.size in 1..2 }, "a layer of the decoder has no mixer, or more than two")
        good(projector.size in 1..Limits.PROJECTOR_STEPS, "its projector has ${projector.size} steps")
        for (name in blocks.flatten().filter { it.text("kind") == "attention" }.flatMap { it.ropeNames() }) {
            good(name in positions.ropes, "an attention turns by the RoPE '${name.take(80)}', which is not in decoder.ropes")
        }
        val tables = positions.ropes.values.sumOf { it.size.toLong() } * contextLength
        good(tables <= Limits.ROPE_TABLE, "its context of $contextLength positions needs too large RoPE tables")
        good(imageTokenId < vocabSize, "image_token_id $imageTokenId is outside the vocabulary")
        val outside = markers.size > Limits.MARKERS || markers.any { it >= vocabSize }
        good(!outside, "it has over ${Limits.MARKERS} tokens around pictures, or one outside the vocabulary")
        good(perLayerWidth <= Limits.MLP_WIDTH, "its layers take $perLayerWidth values of a token")
        states = order.flatMapIndexed { layer, block -> blocks[block].flatMapIndexed { m, mixer -> states(layer, m, mixer) } }
        val kept = states.filter { null in it.shape }.sumOf { it.values() }
        good(kept <= Limits.STATE_PER_POSITION, "it keeps $kept values per position, expected at most ${Limits.STATE_PER_POSITION}")
        val carried = states.filter { it.kind == State.Kind.REPLACE }.sumOf { it.values() }
        good(carried <= Limits.STATE_VALUES, "it carries $carried values beside keys and values")
    }

    internal val visionKind: String = vision.text("kind")
    private val patchSize = vision.int("patch_size")
    private val sheet = if (visionKind == "sheet_vit") vision.int("window") else 0

    /** Pixels per side that a view of a tower for any size has a multiple of; 0: its views have one size. */
    internal val unitPixels: Int = when (visionKind) {
        in SQUARE -> 0
        "halved_vit" -> 2 * vision.int("merge") * patchSize
        else -> vision.int("merge") * patchSize
    }

    /** Frames of a video that the tower takes as one view. */
    internal val frames: Int = if (visionKind in SQUARE) 1 else vision.int("frames", 1)

    /** Rows and columns of image tokens of a view of that size in pixels. */
    public fun tokenGrid(height: Int, width: Int): Side {
        val states = when (visionKind) {
            "halved_vit" -> Side(height / patchSize / 2, width / patchSize / 2)
            "sheet_vit" -> Side(1, sheet * sheet)
            else -> Side(height / patchSize, width / patchSize)
        }
        return projector.fold(states) { grid, step -> step(grid) }
    }

    /** What a step of the projector makes of a grid. */
    private fun reduction(step: Fields): (Side) -> Side {
        fun by(side: Int): (Side) -> Side = { Side(it.rows / side, it.columns / side) }
        return when (step.text("kind")) {
            "shuffle", "pool" -> by(step.int("scale"))
            "group" -> by(step.int("side"))
            "average" -> step.int("side").let { side -> { Side((it.rows + side - 1) / side, (it.columns + side - 1) / side) } }
            "window_queries" -> by(maxOf(1, step.int("window") / step.int("query")))
            "resample", "queries" -> step.int("count").let { count -> { Side(1, count) } }
            else -> { grid -> grid }
        }
    }

    private fun states(layer: Int, number: Int, mixer: Fields): List<State> {
        val name = if (number == 0) "$layer" else "$layer.mixer$number"
        return when (mixer.text("kind")) {
            "short_conv" ->
                listOf(State("$name.conv", listOf(mixer.int("kernel") - 1, hiddenSize), State.Kind.REPLACE, FLOAT))
            "delta_rule" -> {
                val keys = mixer.int("key_dim")
                val channels = 2 * mixer.int("key_heads") * keys + mixer.int("value_heads") * mixer.int("value_dim")
                listOf(
                    State("$name.conv", listOf(mixer.int("kernel") - 1, channels), State.Kind.REPLACE, FLOAT),
                    State("$name.delta", listOf(mixer.int("value_heads"), keys, mixer.int("value_dim")), State.Kind.REPLACE, FLOAT),
                )
            }
            else -> {
                val reads = mixer.text("reads", "self")
                val kind = if (reads == "self") State.Kind.APPEND else State.Kind.MEMORY
                val shape = listOf(mixer.int("kv_heads"), null, mixer.int("head_dim"))
                if (reads == "earlier") return emptyList()
                listOf("key", "value").map { State("$name.$it", shape, kind, mixer.text("cache", FLOAT)) }
            }
        }
    }

    private fun State.values(): Long = shape.fold(1L) { all, axis -> all * (axis ?: 1) }

    private fun Fields.objects(name: String): List<Fields> =
        get(name) { value, at -> Fields.list(value, at) { each, inner -> Fields.open(each, inner) } }

    private fun Fields.ropeNames(): List<String> =
        listOfNotNull(optional("rope", Fields::text), optional("second_rope", Fields::text))

    private fun Fields.ints(name: String): List<Int> = get(name, emptyList()) { value, at -> Fields.list(value, at, Fields::int) }

    private fun good(good: Boolean, wrong: String) {
        if (!good) throw Fields.bundle("manifest.json: spec does not describe a model: $wrong; ${Records.AGAIN}.")
    }

    internal companion object {
        const val FLOAT = "float32"
        val SQUARE: Set<String> = setOf("vit", "conv_vit", "mobilenet")

        /** Of data that [Records] has checked. */
        fun read(data: Any?, where: String): ModelSpec {
            val fields = Fields.open(data, where)
            return ModelSpec(fields, fields.get("vision", Fields::open), fields.get("decoder", Fields::open))
        }
    }
}
