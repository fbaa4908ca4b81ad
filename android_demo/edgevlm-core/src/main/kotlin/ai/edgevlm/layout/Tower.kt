package ai.edgevlm.layout

import ai.edgevlm.EdgeVLMException
import ai.edgevlm.Limits
import ai.edgevlm.image.ImageSpec
import ai.edgevlm.image.RgbImage
import ai.edgevlm.json.Fields
import ai.edgevlm.json.checkSpec

/** What a vision encoder is fed: `spec.vision` of the manifest. */
public sealed interface Tower {
    /**
     * The inputs of its graph for one view, by name: normalized pixels and whatever follows from its size.
     *
     * [frames]: the view; of a video, the pictures that are one view together, all of one size.
     * Throws [EdgeVLMException.RuntimeFailed] for a view whose size the tower does not take.
     */
    public fun feeds(frames: List<RgbImage>, spec: ImageSpec): Map<String, Tensor>

    public companion object {
        internal fun read(data: Any?, where: String): Tower {
            val fields = Fields.open(data, where)
            return when (Fields.kind(data)) {
                "vit", "conv_vit", "mobilenet" ->
                    SquareTower(fields.bounded("image_size", 1..Limits.IMAGE_SIDE), fields.flag("masked_tiles", false))
                "qwen_vit", "halved_vit", "placed_vit" -> PatchTower.read(fields, Fields.kind(data))
                "sheet_vit" -> SheetTower(
                    fields.bounded("patch_size", 1..Limits.PATCH_SIDE),
                    fields.bounded("window", 1..PatchTower.MOST_WINDOW),
                    fields.bounded("margin", 0..(fields.int("window") - 1) / 2),
                )
                else -> throw Fields.unknown(data, where)
            }
        }

        internal fun other(view: RgbImage, expected: String) = EdgeVLMException.RuntimeFailed(
            "A view has ${view.width} x ${view.height} pixels and the vision encoder takes $expected: " +
                "preprocess.json and the manifest disagree; export the bundle again.",
        )
    }
}

/** A whole number of a tower's description. */
internal fun Fields.bounded(name: String, range: IntRange, default: Int? = null): Int {
    val found = if (default == null) int(name) else int(name, default)
    checkSpec(found in range, "manifest", "spec.vision.$name", "${range.first} to ${range.last}") { found }
    return found
}

/** Views of one size, [side] pixels square. [masked]: its graph takes pictures of several tiles and a mask of them. */
public data class SquareTower(val side: Int, val masked: Boolean) : Tower {
    override fun feeds(frames: List<RgbImage>, spec: ImageSpec): Map<String, Tensor> {
        val view = frames.single()
        if (view.width != side || view.height != side) throw Tower.other(view, "$side x $side")
        val pixels = spec.normalize(view)
        if (!masked) return mapOf("pixel_values" to FloatTensor(intArrayOf(1, 3, side, side), pixels))
        val shown = BooleanArray(side * side).also { java.util.Arrays.fill(it, true) }
        return mapOf(
            "pixel_values" to FloatTensor(intArrayOf(1, 1, 3, side, side), pixels),
            "pixel_attention_mask" to BoolTensor(intArrayOf(1, 1, side, side), shown),
        )
    }
}

/**
 * A tower that sees a picture on a sheet of squares of [window] patches per side: whole in the first, and in crops of
 * it, which have [margin] patches in common with each neighbour, halved, in the rows below.
 */
public data class SheetTower(val patch: Int, val window: Int, val margin: Int) : Tower {
    override fun feeds(frames: List<RgbImage>, spec: ImageSpec): Map<String, Tensor> {
        val sheet = frames.single()
        val side = window * patch
        val whole = sheet.width % side == 0 && sheet.height % side == 0 && sheet.height >= 2 * side
        if (!whole) throw Tower.other(sheet, "squares of $side")
        val columns = sheet.width / side
        val squares = listOf(0) + (columns until sheet.height / side * columns)
        val cells = window * window
        val count = squares.size * cells
        val length = 3 * patch * patch
        val pixels = FloatArray(limited(count, length, PatchTower.VIEW))
        squares.forEachIndexed { number, square ->
            for (i in 0 until cells) {
                val top = (square / columns * window + i / window) * patch
                val left = (square % columns * window + i % window) * patch
                spec.patch(frames, left, top, patch, pixels, (number * cells + i) * length)
            }
        }
        val (places, shares) = mixture(sheet.height / side - 1, columns)
        val real = BooleanArray(count).also { java.util.Arrays.fill(it, true) }
        return mapOf(
            "patches" to FloatTensor(intArrayOf(1, count, length), pixels),
            "table_rows" to LongTensor(intArrayOf(count, 1), LongArray(count) { (it % cells).toLong() }),
            "table_shares" to FloatTensor(intArrayOf(count, 1), FloatArray(count) { 1f }),
            "window_mask" to BoolTensor(intArrayOf(squares.size, 1, 1, cells), real),
            "whole" to LongTensor(intArrayOf(cells), LongArray(cells) { it.toLong() }),
            "places" to LongTensor(intArrayOf(cells, places.size / cells), places),
            "shares" to FloatTensor(intArrayOf(cells, places.size / cells), shares),
        )
    }

    /** Which states of rows x columns crops each state of the map is the mean of, and by which shares. */
    private fun mixture(rows: Int, columns: Int): Pair<LongArray, FloatArray> {
        val down = Lines(rows)
        val across = Lines(columns)
        val each = down.each * across.each
        val places = LongArray(window * window * each)
        val shares = FloatArray(places.size)
        var to = 0
        for (y in 0 until window) {
            for (x in 0 until window) {
                for (i in y * down.each until (y + 1) * down.each) {
                    for (j in x * across.each until (x + 1) * across.each) {
                        val tile = 1 + down.crop[i] * columns + across.crop[j]
                        places[to] = (tile * window + down.line[i]).toLong() * window + across.line[j]
                        shares[to++] = (down.share[i] * across.share[j]).toFloat()
                    }
                }
            }
        }
        return places to shares
    }

    /** Of the map's lines that each averaged one takes: the crop, the line in it, and the share; [each] of them. */
    private inner class Lines(crops: Int) {
        private val step = window - 2 * margin
        private val lines = crops * step + 2 * margin
        val each: Int = (0 until window).maxOf { end(it) - first(it) }
        val crop = IntArray(window * each)
        val line = IntArray(window * each)
        val share = DoubleArray(window * each)

        init {
            for (i in 0 until window) {
                for (j in 0 until each) {
                    val at = first(i) + j
                    val place = minOf(at, lines - 1)
                    val of = minOf(maxOf(Math.floorDiv(place - margin, step), 0), crops - 1)
                    crop[i * each + j] = of
                    line[i * each + j] = place - of * step
                    share[i * each + j] = (if (at < end(i)) 1.0 else 0.0) / (end(i) - first(i))
                }
            }
        }

        private fun first(i: Int) = i * lines / window

        private fun end(i: Int) = ((i + 1) * lines + window - 1) / window
    }
}

/** Normalized values of one patch into [out]: channel by channel, of each every frame's rows. */
internal fun ImageSpec.patch(frames: List<RgbImage>, left: Int, top: Int, side: Int, out: FloatArray, start: Int) {
    var to = start
    for (channel in 0 until 3) {
        val table = tables[channel]
        for (frame in frames) {
            for (y in top until top + side) {
                var from = (y * frame.width + left) * 3 + channel
                for (x in 0 until side) {
                    out[to++] = table[frame.bytes[from].toInt() and 255]
                    from += 3
                }
            }
        }
    }
}
