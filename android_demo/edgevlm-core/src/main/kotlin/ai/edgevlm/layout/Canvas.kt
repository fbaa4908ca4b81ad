package ai.edgevlm.layout

/**
 * Positions (time, row, column) of a prompt whose pictures lie on canvases: a picture's slices lie on one, the whole of
 * it is spread over all of that, and the tokens around them stand at corners and edges.
 */
internal fun canvasPositions(layout: Layout): Array<LongArray> {
    val out = Array(3) { LongArray(layout.length) }
    var at = 0L
    var place = 0

    fun put(token: Int, row: Long, column: Long) {
        out[1][token] = row
        out[2][token] = column
    }

    fun text(until: Int) {
        while (place < until) {
            for (axis in out) axis[place] = at
            place++
            at++
        }
    }

    for (picture in pictures(layout.spans)) {
        val whole = picture[0]
        val slices = picture.drop(1)
        val last = picture.last()
        val start = maxOf(0, whole.start - 1)
        text(start)
        place = last.start + last.tokens + last.behind
        val grid = if (slices.isEmpty()) whole.grid else slices[0].grid
        val rows = if (slices.isEmpty()) 1 else last.place?.row ?: 1
        val columns = if (slices.isEmpty()) 1 else last.place?.column ?: 1
        val size = Side(rows * grid.rows, columns * grid.columns)
        for (axis in out) java.util.Arrays.fill(axis, start, place, at)
        put(start, maxOf(at - 1, 0), maxOf(at - 1, 0))
        if (whole.start + whole.tokens < place) put(whole.start + whole.tokens, at + size.rows, at + size.columns)
        val down = spread(whole.grid.rows, size.rows)
        val across = spread(whole.grid.columns, size.columns)
        for (i in 0 until whole.tokens) {
            put(whole.position(i), at + down[i / whole.grid.columns], at + across[i % whole.grid.columns])
        }
        slices.forEachIndexed { number, view ->
            val top = at + number / columns * grid.rows
            val left = at + number % columns * grid.columns
            val end = view.start + view.tokens
            for (i in 0 until view.tokens) {
                put(view.position(i), top + i / view.grid.columns, left + i % view.grid.columns)
            }
            put(view.start - 1, top, left)
            if (end < place) put(end, top + view.grid.rows - 1, left + view.grid.columns - 1)
            if (number % columns == columns - 1 && view !== last) { // what ends a row of slices
                for (token in end + 1 until slices[number + 1].start - 1) {
                    put(token, top + grid.rows - 1, at + size.columns)
                }
            }
        }
        at += maxOf(size.rows, size.columns) + 1
    }
    text(layout.length)
    return out
}

/** Each picture's views: all of it, then its slices. */
private fun pictures(spans: List<Span>): List<List<Span>> {
    val found = ArrayList<ArrayList<Span>>()
    for (span in spans) {
        if (span.place == null || found.isEmpty()) found += ArrayList<Span>()
        found.last() += span
    }
    return found
}

/** [count] whole numbers evenly from 0 to size - 1, as torch.linspace and round make them in float32. */
private fun spread(count: Int, size: Int): LongArray {
    val end = (size - 1).toFloat()
    val step = end / maxOf(1, count - 1).toFloat()
    return LongArray(count) { i ->
        val place = if (i < maxOf(1, count / 2)) step * i.toFloat() else end - step * (count - 1 - i).toFloat()
        Math.rint(place.toDouble()).toLong()
    }
}
