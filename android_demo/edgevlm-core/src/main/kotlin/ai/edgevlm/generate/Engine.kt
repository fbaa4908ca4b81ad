package ai.edgevlm.generate

import ai.edgevlm.EdgeVLMException
import ai.edgevlm.image.RgbImage
import ai.edgevlm.layout.Layout
import ai.edgevlm.layout.Rows
import java.io.Closeable
import java.lang.ref.WeakReference
import java.util.concurrent.locks.ReentrantLock
import kotlin.concurrent.withLock

/** The vision half of a bundle on an engine: tower and projector. For one thread at a time. */
public interface Encoder : Closeable {
    /** One view to its image features, (tokens, D). Normalizing is part of it. Throws [Stopped]. */
    public fun encode(view: RgbImage, cancellation: Cancellation): Rows
}

/** The text half, holding one conversation's states. For one thread at a time. */
public interface Decoder : Closeable {
    /** The last that was given; an empty one of a new conversation. */
    public val layout: Layout

    /** Positions that are held. */
    public val position: Int

    /** Token ids to embeddings, a row each. */
    public fun embed(ids: IntArray): Rows

    /**
     * Append positions; logits after the last one, one for each token of the vocabulary.
     *
     * [layout]: of the whole prompt, given with the first part of it that is read; null goes on under the one before.
     * Throws [Stopped] where [cancellation] came: what was read before is held.
     */
    public fun forward(embeds: Rows, layout: Layout?, cancellation: Cancellation): FloatArray

    /** Forget every position from [length] on; 0 starts a new conversation, the only choice where states are overwritten. */
    public fun rewind(length: Int)

    /** The overwritten states after the last position, by name. */
    public fun copied(): Map<String, FloatArray>

    /** As [rewind], to positions that are still held, after which [copied] were given. */
    public fun goBack(length: Int, copied: Map<String, FloatArray>)
}

/** A call was left because nobody wants its result any more. */
public class Stopped : RuntimeException()

/** Whether an answer is still wanted. Any thread may cancel it. */
public class Cancellation {
    private var stop: (() -> Unit)? = null

    @Volatile
    public var requested: Boolean = false
        private set

    public fun cancel() {
        synchronized(this) {
            requested = true
            stop?.invoke()
        }
    }

    /** Make a [call] that [stop] ends early, from another thread; [stop] is never called when the call has ended. */
    public fun <T> during(stop: () -> Unit, call: () -> T): T {
        synchronized(this) {
            if (requested) throw Stopped()
            this.stop = stop
        }
        try {
            return call()
        } finally {
            synchronized(this) { this.stop = null }
        }
    }
}

/** An answer that is under way. */
internal interface Unfinished {
    /** Compute the rest, and keep it for whoever reads the answer. */
    fun finish()
}

/**
 * A bundle's two halves, and whose answer they work on: one at a time, whatever threads ask.
 *
 * An answer that is in the way is finished first, by the one who waits: nobody waits for a reader that is slow or gone.
 */
public class Runtime(internal val encoder: Encoder, internal val decoder: Decoder) : Closeable {
    internal val lock = ReentrantLock()
    private var closed = false
    private var holder = WeakReference<Unfinished>(null) // an answer that nobody can read any more is dropped

    /** Give the engine to [answer]; [lock] is held. */
    internal fun take(answer: Unfinished) {
        checkOpen()
        val before = holder.get()
        if (before === answer) return
        before?.finish()
        holder = WeakReference(answer)
    }

    internal fun checkOpen() {
        if (closed) throw EdgeVLMException.Closed("The model is closed: load it again.")
    }

    /** Free both, after the call that is under way in another thread. Calling it twice is harmless. */
    override fun close() {
        lock.withLock {
            if (closed) return
            closed = true
            encoder.close()
            decoder.close()
        }
    }
}
