package ai.edgevlm.layout

import ai.edgevlm.EdgeVLMException
import ai.edgevlm.image.Place

/**
 * The image tokens of one view, of a picture whose views are packed, or of a video's views one behind the other.
 *
 * [start]: position of the first one in the prompt. [gap]: tokens of text between two rows. [frames]: views of that
 * [grid], one behind the other. [step]: positions of time from one of them to the next. [place]: on a canvas, of a
 * tile; null is the whole picture. [behind]: tokens behind it that stand on its picture's canvas, too.
 */
public data class Span(
    val start: Int,
    val grid: Side,
    val packed: Packed? = null,
    val gap: Int = 0,
    val frames: Int = 1,
    val step: Double = 1.0,
    val place: Place? = null,
    val behind: Int = 0,
) {
    public val tokens: Int get() = frames * grid.size

    /** Position of its token [number], row by row. */
    public fun position(number: Int): Int = start + number + number / maxOf(1, grid.columns) * gap

    /** The first position behind its tokens. */
    public val end: Int get() = position(tokens - 1) + 1

    /** Rows of features that an encoder gives for each of its views. */
    public val features: List<Int> get() = packed?.counts ?: List(frames) { grid.size }
}

/** A control token around a picture that has an embedding of its own, [row], in place of its row of the table. */
public class Marker(public val start: Int, public val row: FloatArray) {
    override fun equals(other: Any?): Boolean = other is Marker && start == other.start

    override fun hashCode(): Int = start
}

/** A prompt of [length] tokens; what follows it is the answer. */
public data class Layout(
    val length: Int,
    val spans: List<Span> = emptyList(),
    val markers: List<Marker> = emptyList(),
) {
    /** What lies at [start] and later, as a layout of its own for [merge]. No picture reaches over [start]. */
    public fun behind(start: Int): Layout = Layout(
        length - start,
        spans.filter { it.start >= start }.map { it.copy(start = it.start - start) },
        markers.filter { it.start >= start }.map { Marker(it.start - start, it.row) },
    )

    /** Each span's rows, of the [features] of all views in order: packed where the model packs. */
    public fun imageTokens(features: List<Rows>): List<Rows> {
        var next = 0
        val found = spans.map { span ->
            val sizes = span.features
            if (features.size - next < sizes.size) throw disagree("features of ${features.size} views", "more")
            val own = features.subList(next, next + sizes.size)
            for ((rows, size) in own.zip(sizes)) {
                if (rows.count != size) throw disagree("${rows.count} features of a view", "$size")
            }
            next += sizes.size
            if (span.packed != null) span.packed.run(own) else joined(own)
        }
        if (next < features.size) throw disagree("features of ${features.size} views", "$next")
        return found
    }

    private fun joined(parts: List<Rows>): Rows {
        if (parts.size == 1) return parts[0]
        val values = FloatArray(parts.sumOf { it.values.size })
        var at = 0
        for (part in parts) {
            System.arraycopy(part.values, 0, values, at, part.values.size)
            at += part.values.size
        }
        return Rows(values, parts[0].width)
    }

    /**
     * Put the views' [features] in the places of their image tokens, and markers' own embeddings, into [embeds]: rows
     * of this prompt, in place. What lies behind the features' width stays as it is.
     *
     * Throws [EdgeVLMException.RuntimeFailed] where an encoder gave others than the prompt has room for.
     */
    public fun merge(embeds: Rows, features: List<Rows>) {
        for ((span, rows) in spans.zip(imageTokens(features))) {
            if (rows.count != span.tokens || rows.width > embeds.width) {
                throw disagree("${rows.count} rows of ${rows.width} features", "${span.tokens} of ${embeds.width}")
            }
            for (i in 0 until rows.count) {
                val to = span.position(i) * embeds.width
                System.arraycopy(rows.values, i * rows.width, embeds.values, to, rows.width)
            }
        }
        for (marker in markers) {
            System.arraycopy(marker.row, 0, embeds.values, marker.start * embeds.width, marker.row.size)
        }
    }

    public companion object {
        /**
         * The spans with their views' places, and the tokens behind each that stand on its picture's canvas, too: those
         * of [ids] that are in [canvas].
         */
        public fun onCanvas(spans: List<Span>, places: List<Place?>, ids: IntArray, canvas: Set<Int>): List<Span> =
            spans.zip(places) { span, place ->
                var end = span.start + span.tokens
                while (end < ids.size && ids[end] in canvas) end++
                span.copy(place = place, behind = end - span.start - span.tokens)
            }

        private fun disagree(found: String, expected: String) = EdgeVLMException.RuntimeFailed(
            "The encoder gave $found, expected $expected: the bundle's graphs and its manifest disagree; export the " +
                "bundle again.",
        )
    }
}

/**
 * How many of the first [length] positions, whose tokens are the same, a decoder computes under [new] as under [old]:
 * their pictures, places and masks agree, none of them sees a position behind, and no picture is cut.
 */
public fun unchanged(d: Positions, old: Layout, new: Layout, length: Int): Int {
    var kept = length
    do {
        val before = kept
        kept = minOf(kept, firstOther(old.spans, new.spans) { it.start })
        kept = minOf(kept, firstOther(old.markers, new.markers) { it.start })
        kept = minOf(kept, firstOther(blocks(old, d.mask), blocks(new, d.mask)) { it.first })
        val parts = new.spans.map { it.start until it.end } + blocks(new, d.mask)
        kept = parts.filter { it.first < kept && kept <= it.last }.minOfOrNull { it.first } ?: kept
        if (d.axes > 1) {
            val one = d.of(old, 0, kept)
            val other = d.of(new, 0, kept)
            kept = (0 until kept).firstOrNull { i -> one.indices.any { one[it][i] != other[it][i] } } ?: kept
        }
    } while (kept != before)
    return kept
}

private inline fun <T> firstOther(ours: List<T>, theirs: List<T>, start: (T) -> Int): Int {
    for (i in 0 until maxOf(ours.size, theirs.size)) {
        val one = ours.getOrNull(i)
        val other = theirs.getOrNull(i)
        if (one != other) return listOfNotNull(one, other).minOf { start(it) }
    }
    return Int.MAX_VALUE
}
