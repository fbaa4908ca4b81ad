package ai.edgevlm.layout

/**
 * Which positions each of [new] ones behind [past] sees, row by row: (new, past + new).
 *
 * A [window] clips what a picture sees of itself, and not what a prompt does: create_masks_for_vision_model and
 * create_sliding_window_causal_mask of transformers.
 */
internal fun visible(layout: Layout, rule: Positions.Mask, past: Int, new: Int, window: Int? = null): BooleanArray {
    val width = past + new
    val seen = BooleanArray(limited(new, width, "A prompt's mask"))
    val blocks = blocks(layout, rule)
    for (i in 0 until new) {
        val row = past + i
        val block = blocks.filter { row in it }
        fun see(from: Int, until: Int) =
            java.util.Arrays.fill(seen, i * width + from, i * width + maxOf(from, until), true)
        val first = if (window == null) 0 else maxOf(0, row - window + 1)
        see(first, row + 1)
        for (each in block) {
            val from = if (rule == Positions.Mask.IMAGE) maxOf(first, each.first) else each.first
            see(from, minOf(each.last + 1, width))
        }
    }
    return seen
}

/** Runs of positions that see each other, later ones too. */
internal fun blocks(layout: Layout, rule: Positions.Mask): List<IntRange> = when (rule) {
    Positions.Mask.CAUSAL -> emptyList()
    Positions.Mask.IMAGE -> layout.spans.map { it.start until it.start + it.tokens }
    Positions.Mask.PROMPT -> listOf(0 until layout.length)
    Positions.Mask.PREFIX ->
        if (layout.spans.isEmpty()) emptyList() else listOf(0 until layout.spans.maxOf { it.start + it.tokens })
}

/**
 * Where a call ends that reads positions from [start] on, of those up to [stop]: after [most] or fewer.
 *
 * Positions that see later ones are read in one call, however many they are: nothing is cut inside of them.
 */
public fun nextPart(layout: Layout, rule: Positions.Mask, start: Int, stop: Int, most: Int): Int {
    var end = minOf(start.toLong() + most, stop.toLong()).toInt()
    for (block in blocks(layout, rule)) {
        val last = block.last + 1
        val cuts = end in block.first + 1 until last && end < stop
        if (cuts) end = if (block.first > start) block.first else minOf(last, stop)
    }
    return end
}
