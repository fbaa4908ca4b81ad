package ai.edgevlm.layout

import ai.edgevlm.Limits
import ai.edgevlm.image.ImageSpec
import ai.edgevlm.image.RgbImage
import ai.edgevlm.json.Fields
import ai.edgevlm.json.checkSpec

/**
 * A tower of any resolution, whose patches stand in groups that become one token each:
 * `edgevlm/models/towers/qwen_vit.py` and its kinds. Where some layers see windows, groups stand window by window, each
 * padded to its full size.
 */
public data class PatchTower(
    /** Pixels per side of one patch. */
    val patch: Int,
    /** Patches per side of a group that is ordered row by row. */
    val group: Int,
    /** Patches per side of a window, or of a token's patches where there are no windows. */
    val side: Int,
    val windows: Boolean,
    /** Of a head that is turned by row and column; null: none is. */
    val headDim: Int?,
    val theta: Double,
    /** A column's frequencies lie between a row's, not at the same places. */
    val staggered: Boolean,
    /** Rows per side of a learned square table of positions; 0: none. */
    val table: Int,
    val resample: Tables.Kind,
    val frames: Int,
    /** Patches per side that a gated convolution takes; 0: none. */
    val kernel: Int,
    /** Every value of a patch that is not there. */
    val filler: Float,
    /** Values of a patch's place that the projector asks for; 0: none. */
    val places: Int,
    /** Behind one of its layers four neighbours become one state. */
    val halved: Boolean,
) : Tower {
    override fun feeds(frames: List<RgbImage>, spec: ImageSpec): Map<String, Tensor> {
        val view = frames[0]
        val rows = view.height / patch
        val columns = view.width / patch
        val whole = rows * patch == view.height && columns * patch == view.width
        val units = !halved || (rows % side == 0 && columns % side == 0)
        if (!whole || !units) throw Tower.other(view, "multiples of ${if (halved) patch * side else patch}")
        if (frames.size != 1 && frames.size != this.frames) throw Tower.other(view, "${this.frames} frames")
        val alike = frames.all { it.width == view.width && it.height == view.height }
        if (!alike) throw Tower.other(view, "frames of one size")
        val at = order(rows, columns)
        val flat = IntArray(at.size) { maxOf(at[it], 0) }
        val real = BooleanArray(at.size) { at[it] >= 0 }
        val shown = if (frames.size == this.frames) frames else List(this.frames) { view }
        val found = LinkedHashMap<String, Tensor>()
        found["patches"] = patches(at, columns, shown, spec)
        if (headDim != null) {
            val (cos, sin) = turns(flat, columns)
            found["cos_patches"] = FloatTensor(intArrayOf(at.size, headDim / 2), cos)
            found["sin_patches"] = FloatTensor(intArrayOf(at.size, headDim / 2), sin)
        }
        found["mask"] = BoolTensor(intArrayOf(1, 1, 1, at.size), real)
        if (kernel > 0) found["neighbours"] = neighbours(at, rows, columns)
        if (table > 0) found += Tables.resampled(resample, table, flat, rows, columns)
        if (windows) {
            found["window_mask"] = BoolTensor(intArrayOf(at.size / (side * side), 1, 1, side * side), real)
            found["order"] = tokenOrder(at, columns)
        }
        if (halved) {
            val joined = BooleanArray(at.size / 4) { real[4 * it] }
            found["joined_mask"] = BoolTensor(intArrayOf(1, 1, 1, joined.size), joined)
        }
        if (places > 0) {
            found["places"] = FloatTensor(intArrayOf(1, at.size, places), waves(at.size, columns))
            found["view_mask"] = BoolTensor(intArrayOf(1, 1, 1, at.size), real)
        }
        return found
    }

    private fun patches(at: IntArray, columns: Int, shown: List<RgbImage>, spec: ImageSpec): Tensor {
        val length = 3 * frames * patch * patch
        val out = FloatArray(limited(at.size, length, VIEW))
        for (i in at.indices) {
            if (at[i] < 0) {
                java.util.Arrays.fill(out, i * length, (i + 1) * length, filler)
            } else {
                spec.patch(shown, at[i] % columns * patch, at[i] / columns * patch, patch, out, i * length)
            }
        }
        return FloatTensor(intArrayOf(1, at.size, length), out)
    }

    /** Windows row by row; in a window, groups row by row; in a group, patches row by row. -1 is padding. */
    private fun order(rows: Int, columns: Int): IntArray {
        val high = (rows + side - 1) / side
        val wide = (columns + side - 1) / side
        val inner = side / group
        val out = IntArray(limited(high * wide, side * side, VIEW))
        var to = 0
        for (window in 0 until high * wide) {
            for (part in 0 until inner * inner) {
                val top = window / wide * side + part / inner * group
                val left = window % wide * side + part % inner * group
                for (i in 0 until group * group) {
                    val row = top + i / group
                    val column = left + i % group
                    out[to++] = if (row < rows && column < columns) row * columns + column else -1
                }
            }
        }
        return out
    }

    /** Where each token, row by row, lies among the groups of patches in window order. */
    private fun tokenOrder(at: IntArray, columns: Int): Tensor {
        val each = group * group
        val groups = (0 until at.size / each).filter { at[it * each] >= 0 } // by the upper left patch of each
        val order = LongArray(groups.size)
        for (place in groups) {
            val first = at[place * each]
            order[first / columns / group * (columns / group) + first % columns / group] = place.toLong()
        }
        return LongTensor(intArrayOf(order.size), order)
    }

    /** Cosines and sines: a quarter of a head is turned by row, a quarter by column. */
    private fun turns(flat: IntArray, columns: Int): Pair<FloatArray, FloatArray> {
        val quarter = headDim!! / 4
        val step = 0.5 / quarter
        val delta = step.toFloat()
        val rates = Rope.frequencies(theta, FloatArray(Math.ceil(1 / step).toInt()) { it.toFloat() * delta })
        val cos = FloatArray(limited(flat.size, 2 * quarter, VIEW))
        val sin = FloatArray(cos.size)
        val lines = HashMap<Int, FloatArray>()
        for (i in flat.indices) {
            for (axis in 0..1) {
                val place = if (axis == 0) flat[i] / columns else flat[i] % columns
                val first = if (axis == 1 && staggered) 1 else 0
                val line = lines.getOrPut(place * 2 + axis) { line(place, rates, first, quarter) }
                System.arraycopy(line, 0, cos, (2 * i + axis) * quarter, quarter)
                System.arraycopy(line, quarter, sin, (2 * i + axis) * quarter, quarter)
            }
        }
        return cos to sin
    }

    /** Cosines and then sines of one place along an axis, by every other rate from [first] on. */
    private fun line(place: Int, rates: FloatArray, first: Int, quarter: Int): FloatArray {
        val out = FloatArray(2 * quarter)
        for (i in 0 until quarter) {
            val angle = (place.toFloat() * rates[2 * i + first]).toDouble()
            out[i] = StrictMath.cos(angle).toFloat()
            out[quarter + i] = StrictMath.sin(angle).toFloat()
        }
        return out
    }

    /** The sines of slower and slower waves of a patch's column, their cosines, and the same of its row. */
    private fun waves(count: Int, columns: Int): FloatArray {
        val quarter = places / 4
        val rates = Rope.frequencies(10000.0, FloatArray(quarter) { it.toFloat() / quarter.toFloat() })
        val out = FloatArray(limited(count, places, VIEW))
        for (i in 0 until count) {
            for (axis in 0..1) {
                val place = if (axis == 0) i % columns else i / columns
                for (j in 0 until quarter) {
                    val angle = (place.toFloat() * rates[j]).toDouble()
                    out[i * places + axis * 2 * quarter + j] = StrictMath.sin(angle).toFloat()
                    out[i * places + axis * 2 * quarter + quarter + j] = StrictMath.cos(angle).toFloat()
                }
            }
        }
        return out
    }

    /** Where the patches around each lie among all, counted from 1; 0 beyond the picture, and all of padding. */
    private fun neighbours(at: IntArray, rows: Int, columns: Int): Tensor {
        val half = kernel / 2
        val place = IntArray(rows * columns)
        for (i in at.indices) if (at[i] >= 0) place[at[i]] = i + 1
        val out = LongArray(limited(at.size, kernel * kernel, VIEW))
        for (i in at.indices) {
            if (at[i] < 0) continue
            for (j in 0 until kernel * kernel) {
                val row = at[i] / columns + j / kernel - half
                val column = at[i] % columns + j % kernel - half
                if (row in 0 until rows && column in 0 until columns) {
                    out[i * kernel * kernel + j] = place[row * columns + column].toLong()
                }
            }
        }
        return LongTensor(intArrayOf(at.size, kernel * kernel), out)
    }

    internal companion object {
        const val MOST_WINDOW = 128
        const val VIEW = "A view for the vision encoder"
        private const val MOST_KERNEL = 15

        fun read(fields: Fields, kind: String): PatchTower {
            val merge = fields.bounded("merge", 1..Limits.SHUFFLE)
            val window = fields.optional("window", Fields::int)
            val good = window == null || (window in 1..MOST_WINDOW && window % merge == 0)
            checkSpec(good, "manifest", "spec.vision.window", "a multiple of $merge up to $MOST_WINDOW") { window }
            val halved = kind == "halved_vit"
            val attention = Fields.open(mixer(fields), "spec.vision.block.mixers[0]")
            val head = attention.int("head_dim")
            val turned = attention.optional("rope", Fields::text) != null
            val turns = !turned || (head in 4..Limits.HEAD_DIM && head % 4 == 0)
            checkSpec(turns, "manifest", "spec.vision head_dim", "a multiple of 4 up to ${Limits.HEAD_DIM}") { head }
            val resample = Tables.kind(fields.text("resample", "corners"))
            val layers = fields.get("convolving", emptyList()) { list, at -> Fields.list(list, at, Fields::int) }
            val convolves = layers.isNotEmpty()
            val kernel = if (convolves) fields.bounded("kernel", 1..MOST_KERNEL, 3) else 0
            checkSpec(!convolves || kernel % 2 == 1, "manifest", "spec.vision.kernel", "an odd number") { kernel }
            val table = fields.bounded("table", 0..Limits.TABLE_ROWS, 0)
            val square = resample == Tables.Kind.NONE || table.toLong() * table <= Limits.PATCHES
            checkSpec(square, "manifest", "spec.vision.table", "at most ${Limits.PATCHES} positions") { table }
            val places = if (kind == "placed_vit") fields.bounded("places", 4..Limits.WIDTH) else 0
            checkSpec(places % 4 == 0, "manifest", "spec.vision.places", "a multiple of 4") { places }
            return PatchTower(
                patch = fields.bounded("patch_size", 1..Limits.PATCH_SIDE),
                group = if (halved) 2 else merge,
                side = if (halved) 2 * merge else window ?: merge,
                windows = window != null && !halved,
                headDim = if (turned) head else null,
                theta = fields.real("theta", 10000.0),
                staggered = fields.flag("staggered", false),
                table = table,
                resample = resample,
                frames = fields.bounded("frames", 1..Limits.GROUP, 1),
                kernel = kernel,
                filler = fields.real("filler", 0.0).toFloat(),
                places = places,
                halved = halved,
            )
        }

        private fun mixer(fields: Fields): Any? = Fields.open(fields.raw("block"), "spec.vision.block")
            .get("mixers") { list, at -> Fields.list(list, at, 1) { mixer, _ -> mixer } }[0]
    }
}
