package ai.edgevlm.layout

import ai.edgevlm.Limits
import ai.edgevlm.image.CropTo
import ai.edgevlm.image.PadTo
import ai.edgevlm.image.ResizeTo
import ai.edgevlm.image.Sheet
import ai.edgevlm.image.View
import ai.edgevlm.json.Fields
import ai.edgevlm.json.checkSpec

/** Pixels of the picture, from its upper left corner; x0 < x1 and y0 < y1. */
public data class Box(val label: String, val x0: Double, val y0: Double, val x1: Double, val y1: Double)

/** Pixels of the picture, from its upper left corner. */
public data class Point(val label: String, val x: Double, val y: Double)

/**
 * How a model writes boxes and points: `grounding` of `prompt.json`.
 *
 * [scale]: what the far edge of the frame is; 0: numbers are pixels of it. [middle]: a number is a bin, and means its
 * middle. [open], [close]: around numbers; [labelOpen], [labelClose]: around a label.
 */
public data class Grounding(
    val form: Form,
    val scale: Int = 0,
    val middle: Boolean = false,
    val yFirst: Boolean = false,
    val open: String = "",
    val close: String = "",
    val labelOpen: String = "",
    val labelClose: String = "",
) {
    /** JSON objects; numbers between tags, behind a label; or a token for each number, the label behind them. */
    public enum class Form { JSON, TAGGED, TOKENS }

    init {
        checkSpec(scale in 0..Limits.VIEW_SIDE, "prompt", "grounding.scale", "0 or more") { scale }
        val texts = mapOf("open" to open, "close" to close, "label_open" to labelOpen, "label_close" to labelClose)
        for ((name, text) in texts) {
            val most = Limits.PICTURE_TEXT
            val good = text.codePointCount(0, text.length) <= most
            checkSpec(good, "prompt", "grounding.$name", "at most $most characters") { text }
        }
        val tags = form == Form.JSON || (open.isNotEmpty() && close.isNotEmpty())
        checkSpec(tags && labelOpen.isEmpty() == labelClose.isEmpty(), "prompt", "grounding", "tags") { this }
    }

    /**
     * The boxes and points of an answer, control tokens spelled. Nonsense gives none; nothing is thrown.
     *
     * Boxes are cut at the frame's and the picture's edges; one without area there is left out, and so is a point
     * outside.
     */
    public fun find(text: String, frame: Frame): Pair<List<Box>, List<Point>> {
        val boxes = ArrayList<Box>()
        val points = ArrayList<Point>()
        for ((said, numbers) in Answers.read(text, this).take(Limits.BOXES)) {
            val pixels = pixels(numbers, frame)
            val label = Answers.first(Answers.stripped(said), Limits.LABEL)
            if (pixels.size == 1) {
                val (x, y) = frame.back(pixels[0].first, pixels[0].second)
                val inside = frame.cut(pixels[0]) == pixels[0] && frame.cutPicture(x to y) == x to y
                if (inside) points += Point(label, x, y)
            } else if (pixels.size == 2) {
                val (upper, lower) = pixels.map { at ->
                    val (x, y) = frame.cut(at)
                    frame.cutPicture(frame.back(x, y))
                }
                if (upper.first < lower.first && upper.second < lower.second) {
                    boxes += Box(label, upper.first, upper.second, lower.first, lower.second)
                }
            }
        }
        return boxes to points
    }

    /** Pairs of numbers as pixels of the frame. */
    private fun pixels(numbers: List<Double>, frame: Frame): List<Pair<Double, Double>> {
        val values = numbers.map { it + if (middle) 0.5 else 0.0 }
        return values.chunked(2).map { (a, b) ->
            val x = if (yFirst) b else a
            val y = if (yFirst) a else b
            if (scale == 0) x to y else x * frame.width / scale to y * frame.height / scale
        }
    }

    internal companion object {
        fun read(data: Any?, where: String): Grounding = Fields.read(data, where) {
            val form = text("form")
            val known = Form.values().firstOrNull { it.name.lowercase() == form }
            checkSpec(known != null, "prompt", "grounding.form", "json or tagged or tokens") { form }
            Grounding(
                known!!, int("scale", 0), flag("middle", false), flag("y_first", false), text("open", ""),
                text("close", ""), text("label_open", ""), text("label_close", ""),
            )
        }
    }
}

/**
 * What a model sees of a picture, in pixels, and the way back: x there is (x of the frame - [left]) / [wide].
 *
 * [pictureWidth], [pictureHeight]: of the picture.
 */
public data class Frame(
    val width: Int,
    val height: Int,
    val wide: Double,
    val high: Double,
    val left: Double,
    val top: Double,
    val pictureWidth: Int,
    val pictureHeight: Int,
) {
    internal fun back(x: Double, y: Double): Pair<Double, Double> = (x - left) / wide to (y - top) / high

    internal fun cut(at: Pair<Double, Double>) = within(at, width, height)

    internal fun cutPicture(at: Pair<Double, Double>) = within(at, pictureWidth, pictureHeight)

    private fun within(at: Pair<Double, Double>, width: Int, height: Int): Pair<Double, Double> =
        cut(at.first, width.toDouble()) to cut(at.second, height.toDouble())

    /** Adding 0.0 makes of -0.0 what it equals. */
    private fun cut(x: Double, most: Double): Double = minOf(maxOf(x, 0.0), most) + 0.0

    public companion object {
        /** Of a picture of that size: its view of the whole, or what its tiles are cut from. */
        public fun of(width: Int, height: Int, views: List<View>): Frame {
            val steps = views.firstOrNull { it.place == null }?.steps ?: views[0].steps.dropLast(1)
            var w = width
            var h = height
            var wide = 1.0
            var high = 1.0
            var left = 0.0
            var top = 0.0
            for (step in steps) {
                when (step) {
                    is ResizeTo -> {
                        val across = step.width / w.toDouble()
                        val down = step.height / h.toDouble()
                        wide *= across
                        left *= across
                        high *= down
                        top *= down
                    }
                    is PadTo -> {
                        left += step.left
                        top += step.top
                    }
                    is CropTo -> {
                        left -= step.left
                        top -= step.top
                    }
                    is Sheet -> {}
                }
                w = step.width
                h = step.height
            }
            return Frame(w, h, wide, high, left, top, width, height)
        }
    }
}
