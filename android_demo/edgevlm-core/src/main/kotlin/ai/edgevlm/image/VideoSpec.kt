package ai.edgevlm.image

import ai.edgevlm.Limits
import ai.edgevlm.json.checkSpec

/**
 * How a video's frames are chosen, cut and written into a prompt: `docs/preprocessing.md`, section 7.
 *
 * The fields are those of `video` in `preprocess.json`. This SDK reads and checks them; it takes no videos yet.
 */
public data class VideoSpec(
    val fps: Double?,
    val most: Int,
    val rule: Rule,
    val resample: Resample,
    val open: String,
    val close: String = "",
    val stamp: String = "",
    val join: String = "",
    val tile: String = "",
    val tileClose: String = "",
    val rowJoin: String = "",
    val intro: String = "",
    val outro: String = "",
    val least: Int = 1,
    val spread: String = "ends",
    val skip: Int = 0,
    val longest: Double? = null,
    val slower: List<Pair<Double, Double>> = emptyList(),
    val group: Int = 1,
    val apart: Boolean = true,
    val pace: Double? = null,
    val pooled: Boolean = false,
    val token: String = "",
    val likeText: Boolean = false,
) {
    init {
        val rate = Limits.FRAME_RATE
        check(fps == null || (fps > 0 && fps <= rate), "fps", "up to $rate") { fps }
        check(most in 1..Limits.FRAMES, "most", "1 to ${Limits.FRAMES}") { most }
        check(least in 1..Limits.FRAMES, "least", "1 to ${Limits.FRAMES}") { least }
        check(skip in 0..60, "skip", "0 to 60") { skip }
        check(group in 1..Limits.GROUP, "group", "1 to ${Limits.GROUP}") { group }
        check(pace == null || (pace > 0 && pace <= 1000), "pace", "up to 1000") { pace }
        check(spread in SPREADS + BY_TIMES, "spread", (SPREADS + BY_TIMES).joinToString(" or ")) { spread }
        check(fps != null || spread !in BY_TIMES, "fps", "a number where frames stand for times") { fps }
        check(longest == null || longest > 0, "longest", "more than 0") { longest }
        val rising = slower.all { (after, slow) -> after > 0 && slow > 0 && slow <= rate }
        check(rising, "slower", "seconds, and up to $rate frames") { slower }
        check(!(apart && pooled), "pooled", "false where apart is true") { pooled }
        val texts = mapOf(
            "intro" to intro, "stamp" to stamp, "open" to open, "close" to close, "join" to join, "tile" to tile,
            "tile_close" to tileClose, "row_join" to rowJoin, "outro" to outro, "token" to token,
        )
        for ((name, text) in texts) {
            val good = text.codePointCount(0, text.length) <= Limits.PICTURE_TEXT
            check(good, name, "at most ${Limits.PICTURE_TEXT} characters") { text }
        }
    }

    private inline fun check(good: Boolean, name: String, expected: Any, found: () -> Any?) {
        checkSpec(good, "image", "video.$name", expected, found)
    }

    private companion object {
        val SPREADS = listOf("ends", "nearest", "starts", "middles")
        val BY_TIMES = listOf("steps", "walk", "seconds")
    }
}
