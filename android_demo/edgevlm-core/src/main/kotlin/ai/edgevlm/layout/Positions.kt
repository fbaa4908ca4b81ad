package ai.edgevlm.layout

import ai.edgevlm.Limits
import ai.edgevlm.json.Fields
import ai.edgevlm.json.checkSpec

/**
 * What of a decoder its prompts' positions and masks follow from: some fields of `spec.decoder` of the manifest.
 *
 * [ropes]: by name. [mask]: which later positions a prompt's see. [windows]: of attention, each once; null sees all.
 * [places]: how a picture is numbered on several axes. [learned]: rows of a table of positions; 0 is none.
 */
public data class Positions(
    val ropes: Map<String, Rope>,
    val mask: Mask = Mask.CAUSAL,
    val windows: Set<Int?> = setOf(null),
    val places: Places = Places.GRID,
    val learned: Int = 0,
) {
    public enum class Mask { CAUSAL, IMAGE, PROMPT, PREFIX }

    public enum class Places { GRID, CANVAS, LINE, NUMBER }

    init {
        val several = if (places == Places.NUMBER) 3..4 else 3..3
        checkSpec(axes == 1 || axes in several, "manifest", "spec.decoder.ropes", "1 or $several axes") { axes }
    }

    /** Position axes: 1, or 3 (time, row, column) under M-RoPE, or (index,) column, row, number. */
    public val axes: Int get() = ropes.values.maxOfOrNull { it.axes } ?: 1

    /** A position is its index: graphs need no more than a length. */
    public val plain: Boolean get() = axes == 1 && mask == Mask.CAUSAL && windows.all { it == null }

    /**
     * Positions of the tokens from [start] to [stop], the answer's included: of each axis, one number per token.
     *
     * Of three axes a view takes as many positions as its longer side has tokens (arXiv 2409.12191), and so do a
     * video's: what follows starts behind their rows and columns, and the answer behind every position.
     */
    public fun of(layout: Layout, start: Int = 0, stop: Int = layout.length, axes: Int = this.axes): Array<LongArray> {
        if (axes == 1 || places == Places.LINE) {
            return Array(axes) { LongArray(maxOf(0, stop - start)) { start.toLong() + it } }
        }
        val prompt = when (places) {
            Places.NUMBER -> numbered(layout, axes)
            Places.CANVAS -> canvasPositions(layout)
            else -> onGrids(layout, axes)
        }
        val answer = (prompt.maxOf { axis -> axis.maxOrNull() ?: -1 }) + 1
        return Array(prompt.size) { axis ->
            LongArray(maxOf(0, stop - start)) {
                val at = start + it
                if (at < layout.length) prompt[axis][at] else answer + at - layout.length
            }
        }
    }

    /**
     * Everything that a decoder call of [new] positions behind [past] takes beside embeddings and states, by the
     * graph's names: nothing where positions are plain indices.
     *
     * RoPE rows are of the new positions; [padded]: behind as many rows of zeros as there are past ones, which graphs
     * that index rows by position take and do not read.
     */
    public fun inputs(layout: Layout, past: Int, new: Int, padded: Boolean = false): Map<String, Tensor> {
        if (plain) return emptyMap()
        val before = if (padded) past else 0
        val found = LinkedHashMap<String, Tensor>()
        for ((name, rope) in ropes) {
            val (cos, sin) = rope.rows(of(layout, past, past + new, rope.axes))
            val half = rope.size / 2
            val suffix = if (name == "main") "" else "_$name"
            for ((part, values) in listOf("cos" to cos, "sin" to sin)) {
                val zeros = FloatArray(limited(before, half, "A prompt's positions"))
                val rows = if (before == 0) values else zeros + values
                found["$part$suffix"] = FloatTensor(intArrayOf(before + new, half), rows)
            }
        }
        if (mask != Mask.CAUSAL) {
            for (window in windows) {
                val name = if (window == null) "mask" else "mask_$window"
                found[name] = BoolTensor(intArrayOf(new, past + new), visible(layout, mask, past, new, window))
            }
        }
        return found
    }

    internal companion object {
        /** Of `spec.decoder` in a manifest; its other fields are those of the graph. */
        fun read(data: Any?, where: String): Positions {
            val fields = Fields.open(data, where)
            val blocks = fields.get("blocks") { list, at -> Fields.list(list, at, ::windowsOf) }
            return Positions(
                fields.get("ropes", emptyMap()) { map, at -> Fields.dict(map, at, Rope::read) },
                word(fields.text("mask", "causal"), "mask", Mask.values()),
                blocks.flatten().toSet(),
                word(fields.text("places", "grid"), "places", Places.values()),
                fields.int("learned_positions", 0),
            )
        }

        private fun windowsOf(block: Any?, where: String): List<Int?> =
            Fields.open(block, where).get("mixers") { list, at -> Fields.list(list, at, ::window) }.flatten()

        private fun window(mixer: Any?, where: String): List<Int?> {
            val fields = Fields.open(mixer, where)
            if (fields.text("kind") != "attention" || fields.text("reads", "self") == "memory") return emptyList()
            val window = fields.optional("window", Fields::int)
            val good = window == null || window in 1..Limits.CONTEXT
            checkSpec(good, "manifest", "window", "1 to ${Limits.CONTEXT}") { window }
            return listOf(window)
        }

        private fun <T : Enum<T>> word(text: String, name: String, known: Array<T>): T {
            val found = known.firstOrNull { it.name.lowercase() == text }
            val wanted = known.joinToString(" or ") { it.name.lowercase() }
            checkSpec(found != null, "manifest", "spec.decoder.$name", wanted) { text }
            return found!!
        }
    }
}

private fun onGrids(layout: Layout, axes: Int): Array<LongArray> {
    val out = Array(axes) { LongArray(layout.length) }
    var at = 0L
    var place = 0
    for (span in layout.spans) {
        while (place < span.start) {
            for (axis in out) axis[place] = at
            place++
            at++
        }
        val (rows, columns) = span.grid
        for (i in 0 until span.tokens) {
            val inside = longArrayOf(
                ((i / span.grid.size).toFloat() * span.step.toFloat()).toLong(),
                (i / columns % rows).toLong(),
                (i % columns).toLong(),
            )
            for (axis in 0 until axes) out[axis][span.start + i] = at + inside[3 - axes + axis]
        }
        at += maxOf(rows, columns)
        place = span.start + span.tokens
    }
    while (place < layout.length) {
        for (axis in out) axis[place] = at
        place++
        at++
    }
    return out
}

private fun numbered(layout: Layout, axes: Int): Array<LongArray> {
    val out = Array(axes) { LongArray(layout.length) { it.toLong() } }
    layout.spans.forEachIndexed { number, span ->
        val framed = span.packed as? Framed
        val grid = framed?.lines ?: span.grid
        val start = span.start + if (framed != null) 1 else 0
        for (i in 0 until grid.size) {
            out[axes - 3][start + i] = (i % grid.columns).toLong()
            out[axes - 2][start + i] = (i / grid.columns).toLong()
            out[axes - 1][start + i] = number.toLong()
        }
    }
    return out
}
