package ai.edgevlm.generate

import ai.edgevlm.EdgeVLMException
import ai.edgevlm.Limits

/** How a question is put and its answer chosen; the defaults are greedy. Throws [EdgeVLMException] for a value out of its range. */
public data class AskOptions(
    /** Answer tokens at most, cut to what the context length leaves. */
    val maxTokens: Int = 128,
    /** 0 takes the most likely token and ignores [topP], [topK] and [seed]. */
    val temperature: Double = 0.0,
    /** Keep the most likely tokens that together reach this probability; 1 keeps all. */
    val topP: Double = 1.0,
    /** Keep this many of the most likely tokens; 0 keeps all. */
    val topK: Int = 0,
    /** Above 1 makes tokens of the prompt and of the answer less likely. */
    val repetitionPenalty: Double = 1.0,
    val seed: Long = 0,
    /** The answer ends before the first of these texts. */
    val stop: List<String> = emptyList(),
    /** The most tiles of a picture; 1 is the whole picture only; null is the model's rule. */
    val maxTiles: Int? = null,
    /** Whether to think before the answer, where the model has a switch; null: its default. */
    val thinking: Boolean? = null,
    /** Go on to [maxTokens]: for measuring speed over a fixed number of tokens. */
    val ignoreStop: Boolean = false,
) {
    init {
        count("maxTokens", maxTokens.toLong(), 1)
        count("topK", topK.toLong(), 0)
        count("seed", seed, 0)
        number("temperature", temperature, temperature >= 0.0, "of at least 0 (0 is greedy)")
        number("topP", topP, topP > 0.0 && topP <= 1.0, "above 0 and at most 1")
        number("repetitionPenalty", repetitionPenalty, repetitionPenalty > 0.0, "above 0 (1 is no penalty)")
        if (stop.size > Limits.STOPS || stop.any { it.codePointCount(0, it.length) !in 1..Limits.STOP }) {
            throw EdgeVLMException("A stop string cannot be used: give up to ${Limits.STOPS}, each of 1 to ${Limits.STOP} characters.")
        }
    }

    private fun count(name: String, value: Long, least: Long) {
        if (value < least) throw EdgeVLMException("$name is $value: give a whole number of at least $least.")
    }

    private fun number(name: String, value: Double, good: Boolean, wanted: String) {
        if (!good || value.isNaN() || value.isInfinite()) throw EdgeVLMException("$name is $value: give a number $wanted.")
    }
}

/**
 * Chooses one answer's tokens as Python's does: repetition penalty, then (only when sampling) temperature, top-k, top-p,
 * and one number of numpy's generator for each token.
 */
internal class Sampler(private val options: AskOptions, prompt: IntArray, vocabulary: Int) {
    private val penalty = options.repetitionPenalty.toFloat()
    private val seen = if (options.repetitionPenalty != 1.0) BooleanArray(vocabulary) else null
    private val random = if (options.temperature != 0.0) Pcg64(options.seed) else null

    init {
        seen?.let { marks -> prompt.forEach { if (it < vocabulary) marks[it] = true } }
    }

    /** The next token after [logits], which are changed; it counts as seen from then on. */
    fun choose(logits: FloatArray): Int {
        seen?.let { marks ->
            for (i in logits.indices) {
                if (marks[i]) logits[i] = if (logits[i] < 0f) logits[i] * penalty else logits[i] / penalty
            }
        }
        val token = if (random == null) mostLikely(logits) else draw(logits, random)
        seen?.set(token, true)
        return token
    }

    private fun mostLikely(logits: FloatArray): Int {
        var best = 0
        for (i in logits.indices) if (logits[i] > logits[best]) best = i
        return best
    }

    /** Inverse transform: one uniform number per token, whatever the vocabulary's size. */
    private fun draw(logits: FloatArray, random: Pcg64): Int {
        val cumulative = probabilities(logits, options.temperature, options.topK, options.topP)
        for (i in 1 until cumulative.size) cumulative[i] += cumulative[i - 1]
        val drawn = random.next() * cumulative.last()
        var low = 0
        var high = cumulative.size
        while (low < high) {
            val middle = (low + high) ushr 1
            if (cumulative[middle] <= drawn) low = middle + 1 else high = middle
        }
        return low
    }
}

/**
 * What is sampled from, summing to 1; tokens that top-k or top-p drop have 0. Ties at the k-th value all stay, and the
 * token that crosses [topP] stays.
 */
internal fun probabilities(logits: FloatArray, temperature: Double, topK: Int = 0, topP: Double = 1.0): DoubleArray {
    val most = logits.maxOrNull()!!.toDouble()
    val scores = DoubleArray(logits.size) { (logits[it].toDouble() - most) / temperature }
    if (topK in 1 until scores.size) {
        val least = scores.sortedArray()[scores.size - topK]
        for (i in scores.indices) if (scores[i] < least) scores[i] = Double.NEGATIVE_INFINITY
    }
    val chances = softmax(scores)
    if (topP >= 1.0) return chances
    // By score, and by place where scores are equal: the sign bit turned so that bits order as numbers do.
    val order = LongArray(scores.size) { i ->
        val bits = java.lang.Float.floatToIntBits(logits[i] + 0f)
        val rank = if (bits < 0) bits.inv() else bits xor Int.MIN_VALUE
        (if (scores[i] == Double.NEGATIVE_INFINITY) 0L else (rank.toLong() and 0xffffffffL) shl 31) or i.toLong()
    }
    order.sort()
    var sum = 0.0
    for (at in 0 until order.size - 1) {
        val token = (order[at] and 0x7fffffffL).toInt()
        sum += chances[token]
        if (sum <= 1.0 - topP) scores[token] = Double.NEGATIVE_INFINITY else break
    }
    return softmax(scores)
}

private fun softmax(scores: DoubleArray): DoubleArray {
    val most = scores.maxOrNull()!!
    val weights = DoubleArray(scores.size) { Math.exp(scores[it] - most) }
    val sum = weights.sum()
    for (i in weights.indices) weights[i] /= sum
    return weights
}
