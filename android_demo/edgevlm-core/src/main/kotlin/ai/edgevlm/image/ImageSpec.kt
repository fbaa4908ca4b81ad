package ai.edgevlm.image

import ai.edgevlm.EdgeVLMException
import ai.edgevlm.Limits
import ai.edgevlm.json.checkSpec
import ai.edgevlm.layout.Packed
import ai.edgevlm.layout.Packing
import ai.edgevlm.layout.Side

/** A view's image tokens in a prompt, those of a picture whose views are packed, or of a video in one run. */
public data class ViewTokens(
    /** Of a tile; null is the whole picture. */
    val place: Place?,
    val rows: Int,
    val columns: Int,
    val packed: Packed? = null,
    /** Views of that grid, one behind the other. */
    val frames: Int = 1,
    /** Positions of time from one of them to the next. */
    val step: Double = 1.0,
)

/**
 * RGB picture to views, and what each pixel of them becomes: `preprocess.json`, version 2.
 *
 * [tokenPixels]: pixels per side that one image token covers; null: every view has [tokens]. [packing]: how the views'
 * features become tokens; null: each view's stand for themselves. [several]: the rule for each picture of a prompt that
 * has several; null: the same. [video]: how a video becomes pictures and words; null: the model takes none.
 */
public data class ImageSpec(
    val version: Int,
    val rule: Rule,
    val resample: Resample,
    val background: Color,
    val rescaleFactor: Double,
    val mean: List<Double>,
    val std: List<Double>,
    val tokenPixels: Int?,
    val tokens: Int? = null,
    val packing: Packing? = null,
    val several: Rule? = null,
    val video: VideoSpec? = null,
) {
    init {
        checkSpec(version == VERSION, "image", "version", VERSION) { version }
        checkColor("background", background)
        val numbers = listOf(rescaleFactor) + mean + std
        checkSpec(mean.size == 3 && std.size == 3, "image", "mean and std", "three numbers each") { mean to std }
        val what = "rescale_factor, mean and std"
        checkSpec(numbers.all { Math.abs(it) < 1e30 }, "image", what, "finite") { numbers }
        checkSpec(std.all { Math.abs(it) > 1e-30 }, "image", "std", "other than 0") { std }
        val found = listOf(tokenPixels, tokens)
        checkSpec(found.count { it == null } == 1, "image", "token_pixels and tokens", "one of them") { found }
        checkCount("token_pixels", tokenPixels)
        checkCount("tokens", tokens)
    }

    /** float32, (3, 256): what each uint8 becomes in each channel; rescaled in double, the rest in float. */
    internal val tables: Array<FloatArray> by lazy {
        Array(3) { channel ->
            val mean = mean[channel].toFloat()
            val std = std[channel].toFloat()
            FloatArray(256) { ((it * rescaleFactor).toFloat() - mean) / std }
        }
    }

    /**
     * The views of a picture of that size, before any pixel is touched.
     *
     * [maxTiles]: the most of them; null leaves that to the rule. Throws [EdgeVLMException.ImageError] for a picture
     * that this model does not take, and [EdgeVLMException] for a budget below 1.
     */
    public fun plan(width: Int, height: Int, maxTiles: Int? = null): List<View> {
        if (maxTiles != null && maxTiles < 1) {
            throw EdgeVLMException("The tile budget is $maxTiles: it should be 1 (the whole picture only) or more.")
        }
        if (width !in 1..LONGEST || height !in 1..LONGEST) {
            throw EdgeVLMException.ImageError("A picture of $width x $height is none, or too large: take another.")
        }
        val views = rule.views(width, height, maxTiles)
        checkPixels(views, width, height)
        return views
    }

    /** The [views] that were planned for a [picture], each of 8-bit RGB. */
    public fun cut(picture: RgbImage, views: List<View>): List<RgbImage> = cut(picture, views, resample)

    /** Normalized pixels of a view, planes of R, G and B one behind the other: float32, (3, height, width). */
    public fun normalize(view: RgbImage): FloatArray = FloatArray(view.bytes.size).also { normalize(view, it, 0) }

    /** The same, into [out] from [start] on. */
    public fun normalize(view: RgbImage, out: FloatArray, start: Int) {
        val pixels = view.width * view.height
        val (red, green, blue) = tables
        var from = 0
        for (i in start until start + pixels) {
            out[i] = red[view.bytes[from].toInt() and 255]
            out[i + pixels] = green[view.bytes[from + 1].toInt() and 255]
            out[i + 2 * pixels] = blue[view.bytes[from + 2].toInt() and 255]
            from += 3
        }
    }

    /** Rows and columns of a view's image tokens. */
    public fun tokenGrid(view: View): Side {
        if (tokenPixels == null) return Side(1, tokens ?: 0)
        val more = if (rule is PaddedTiles) tokenPixels - 1 else 0 // what begins a unit has its token
        return Side((view.height + more) / tokenPixels, (view.width + more) / tokenPixels)
    }

    /** The rules for each of a prompt's [pictures]. */
    public fun among(pictures: Int): ImageSpec = if (several != null && pictures > 1) copy(rule = several) else this

    /** The rules for each of [count] frames of a video. */
    public fun frames(video: VideoSpec, count: Int): ImageSpec {
        val rule = if (video.rule is NativeFrames) video.rule.copy(count = count) else video.rule
        return copy(rule = rule, resample = video.resample, several = null)
    }

    /** The [views] of a picture of [width] x [height] pixels as a prompt names them. */
    public fun viewTokens(views: List<View>, width: Int, height: Int): List<ViewTokens> {
        val sides = views.map(::tokenGrid)
        val found = if (packing == null) {
            views.indices.map { ViewTokens(views[it].place, sides[it].rows, sides[it].columns) }
        } else {
            val packed = packing.plan(width, height, views, sides)
            listOf(ViewTokens(null, 1, checked(packed.tokens.toLong()), packed))
        }
        checked(found.sumOf { it.rows.toLong() * it.columns })
        return found
    }

    private fun checked(tokens: Long): Int {
        if (tokens <= Limits.PICTURE_TOKENS) return tokens.toInt()
        throw EdgeVLMException.ImageError(
            "A picture would take $tokens image tokens, at most ${Limits.PICTURE_TOKENS} are made: scale it down " +
                "first, or export the bundle again.",
        )
    }

    public companion object {
        /** Of `preprocess.json`. */
        public const val VERSION: Int = 2

        private const val LONGEST = 1 shl 24 // pixels of an edge: so that products of all that is multiplied are exact
    }
}
