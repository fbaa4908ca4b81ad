package ai.edgevlm.generate

import ai.edgevlm.EdgeVLMException
import ai.edgevlm.layout.Box
import ai.edgevlm.layout.Point
import java.io.Closeable
import kotlin.concurrent.withLock

/** Seconds and amount of work of each stage. The reader's own time between pieces is not in them. */
public data class Timings(
    /** Resize and cut the pictures, build the prompt. */
    val preprocess: Double = 0.0,
    /** Views to image features. */
    val encode: Double = 0.0,
    /** Prompt to the first token. */
    val prefill: Double = 0.0,
    /** The answer's tokens after the first. */
    val decode: Double = 0.0,
    val imageTokens: Int = 0,
    /** Image tokens included. */
    val promptTokens: Int = 0,
    val answerTokens: Int = 0,
    /** Of the prompt's, those that the decoder had read for the question before. */
    val reusedTokens: Int = 0,
    /** Bytes, the process's largest resident set so far; null where unknown. */
    val peakMemory: Long? = null,
) {
    /** Speed of decode; the first token comes out of prefill and does not count. 0 for one token. */
    val tokensPerSecond: Double get() = if (decode > 0) (answerTokens - 1) / decode else 0.0
}

/** Why an answer ended: the model or a stop string ended it, its length did, or it was cancelled. */
public enum class Finish { STOP, LENGTH, CANCELLED }

/**
 * A whole answer. [ids]: with the stop token where there was one. [boxes], [points]: in pixels of the prompt's only
 * picture, where the model writes them.
 */
public class Answer(
    public val text: String,
    public val ids: List<Int>,
    public val finish: Finish,
    public val timings: Timings,
    public val boxes: List<Box> = emptyList(),
    public val points: List<Point> = emptyList(),
)

/**
 * Iterate for the text's pieces as they come; [answer] then holds the whole.
 *
 * The engine works in the thread that waits for a piece. Where another question needs the engine in between, that one
 * computes the rest of this answer first, and the pieces wait here: a stream may be read slowly, and from any thread.
 */
public class AnswerStream internal constructor(
    private val runtime: Runtime,
    private val cancellation: Cancellation,
    private val whenWhole: (Answer) -> Unit,
    tell: suspend SequenceScope<String>.(done: (Answer) -> Unit) -> Unit,
) : Iterator<String>, Closeable, Unfinished {
    private var whole: Answer? = null
    private val telling: Iterator<String> = iterator { tell { whole = it } }
    private val pieces = ArrayDeque<String>() // computed and not read yet
    private var failed: Throwable? = null
    private var stopped = false

    override fun hasNext(): Boolean = runtime.lock.withLock {
        if (pieces.isEmpty() && !done) {
            runtime.take(this)
            advance()
        }
        if (pieces.isEmpty()) failed?.let { throw it }
        pieces.isNotEmpty()
    }

    override fun next(): String = runtime.lock.withLock {
        if (!hasNext()) throw NoSuchElementException("The answer has ended.")
        pieces.removeFirst()
    }

    /** The complete answer; runs through what was not iterated yet. Throws [EdgeVLMException] after [close]. */
    public val answer: Answer
        get() {
            while (hasNext()) next()
            return whole ?: throw EdgeVLMException("The answer was stopped before its end: ask again for the whole.")
        }

    /** Give each piece to [onPiece] as it comes, and return the whole. */
    public fun collect(onPiece: (String) -> Unit): Answer {
        for (piece in this) onPiece(piece)
        return answer
    }

    /**
     * End the answer, within the engine's call that is under way. Returns at once, from any thread, whoever waits for a
     * piece. What was said until then is the answer, and its end [Finish.CANCELLED].
     */
    public fun cancel() {
        cancellation.cancel()
    }

    /** Compute nothing more. Iteration ends after the pieces that are there. */
    override fun close() {
        if (!done) cancellation.cancel() // which the thread that computes sees
        runtime.lock.withLock { if (!done) stopped = true }
    }

    /** Compute the rest now, whoever reads it later. */
    internal fun settle() {
        runtime.lock.withLock {
            if (done) return
            runtime.take(this)
            finish()
        }
    }

    override fun finish() {
        while (!done) advance()
    }

    private val done: Boolean get() = stopped || whole != null || failed != null

    private fun advance() {
        try {
            if (telling.hasNext()) pieces.addLast(telling.next())
        } catch (error: Throwable) { // for this answer's reader, who may be in another thread
            failed = error
            return
        }
        // Set when there is no piece any more.
        whole?.let(whenWhole)
    }
}
