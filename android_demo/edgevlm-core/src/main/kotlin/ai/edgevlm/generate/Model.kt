package ai.edgevlm.generate

import ai.edgevlm.EdgeVLMException
import ai.edgevlm.bundle.Bundle
import ai.edgevlm.image.RgbImage
import ai.edgevlm.text.Item
import ai.edgevlm.text.Message
import java.io.Closeable
import java.lang.ref.WeakReference
import java.util.concurrent.locks.ReentrantLock
import kotlin.concurrent.withLock

/**
 * A bundle that is loaded for answering. Any number of threads may ask; the engine computes one answer at a time, and
 * the others wait for their turn.
 *
 * [reuse]: false reads every prompt whole, so that no answer depends on what was asked before, not even by how an engine
 * rounds.
 */
public class Model(
    public val bundle: Bundle,
    private val runtime: Runtime,
    public val pictures: PictureCache = PictureCache(),
    reuse: Boolean = true,
) : Closeable {
    internal val pipeline = Pipeline(bundle, runtime, pictures, reuse)

    /**
     * Start an answer; the engine works while the stream is iterated.
     *
     * Throws [EdgeVLMException] here, before any work of the engine, for a picture that the model does not take, and for
     * a prompt that leaves no room for an answer.
     */
    public fun ask(question: String, images: List<RgbImage> = emptyList(), options: AskOptions = AskOptions()): AnswerStream =
        ask(listOf(Message.question(question, images.size)), images, options)

    /** The same for a whole conversation, whose image items take [images] in order. */
    public fun ask(messages: List<Message>, images: List<RgbImage>, options: AskOptions = AskOptions()): AnswerStream =
        pipeline.ask(images.map { Given(it, options.maxTiles) }, messages, options)

    /** As [ask], run to the end. */
    public fun answer(question: String, images: List<RgbImage> = emptyList(), options: AskOptions = AskOptions()): Answer =
        ask(question, images, options).answer

    /** A conversation. [system]: text before the first turn; throws Unsupported where the model takes none. */
    public fun chat(system: String? = null): Chat = Chat(pipeline, system)

    /** Free everything, after the call that is under way in another thread. Calling it twice is harmless. */
    override fun close() {
        runtime.close()
        pictures.clear()
    }
}

/** A question with its pictures, and the whole answer. */
public class Turn internal constructor(public val question: String, internal val given: List<Given>, public val answer: Answer) {
    public val pictures: List<RgbImage> get() = given.map { it.picture }
}

/**
 * Questions one after the other, each of which the decoder reads where the last answer ended. An answer that was
 * cancelled, closed, dropped or failed leaves the conversation as it was before its question.
 *
 * Any thread may ask, but a conversation is one: a question waits for the answer before it.
 */
public class Chat internal constructor(private val pipeline: Pipeline, private val system: String?) : Closeable {
    private val lock = ReentrantLock()
    private val said = ArrayList<Turn>()
    private var open = WeakReference<AnswerStream>(null)
    private var closed = false

    init {
        if (system != null && "system" !in pipeline.bundle.promptSpec.chat.roles) {
            throw EdgeVLMException.Unsupported(
                "This model takes no system message: leave it out, and say it in the first question.",
            )
        }
    }

    /** Those that were answered to their end. */
    public val turns: List<Turn> get() = synchronized(said) { said.toList() }

    /** Positions of the model's context that the conversation takes. */
    public val tokensUsed: Int get() = turns.lastOrNull()?.answer?.timings?.let { it.promptTokens + it.answerTokens } ?: 0

    /** Start the next turn. Throws [EdgeVLMException.ContextFull] when the context is used up. */
    public fun ask(question: String, images: List<RgbImage> = emptyList(), options: AskOptions = AskOptions()): AnswerStream =
        lock.withLock {
            settle()
            val own = images.map { Given(it, options.maxTiles) }
            val before = turns
            val messages = ArrayList<Message>()
            if (system != null) messages += Message("system", listOf(Item.Text(system)))
            for (turn in before) {
                messages += Message.question(turn.question, turn.given.size)
                messages += Message("assistant", listOf(written(turn.answer)))
            }
            messages += Message.question(question, own.size)
            val stream = pipeline.ask(before.flatMap { it.given } + own, messages, options) { answer ->
                if (answer.finish != Finish.CANCELLED) synchronized(said) { said += Turn(question, own, answer) }
            }
            stream.also { open = WeakReference(it) }
        }

    /** As [ask], run to the end. */
    public fun answer(question: String, images: List<RgbImage> = emptyList(), options: AskOptions = AskOptions()): Answer =
        ask(question, images, options).answer

    /** Forget the last [turns]. */
    public fun rewind(turns: Int = 1) {
        lock.withLock {
            settle()
            synchronized(said) {
                if (turns !in 0..said.size) {
                    throw EdgeVLMException("$turns turns cannot be taken back: give a number from 0 to ${said.size}.")
                }
                repeat(turns) { said.removeAt(said.size - 1) }
            }
        }
    }

    /** Forget everything. Calling it twice is harmless. */
    override fun close() {
        lock.withLock {
            open.get()?.close()
            closed = true
            synchronized(said) { said.clear() }
        }
    }

    /** An answer that is under way is computed to its end. */
    private fun settle() {
        if (closed) throw EdgeVLMException.Closed("The chat is closed: begin another one.")
        open.get()?.settle()
        open = WeakReference(null)
    }

    private fun written(answer: Answer): Item.Answer {
        val ids = (if (answer.finish == Finish.STOP) answer.ids.dropLast(1) else answer.ids).toIntArray()
        return Item.Answer(answer.text, ids, pipeline.prompter.decode(ids, special = true))
    }
}
