package ai.edgevlm.install

import java.io.Closeable
import java.io.IOException
import java.util.concurrent.Callable
import java.util.concurrent.CancellationException
import java.util.concurrent.ExecutionException
import java.util.concurrent.Executors
import java.util.concurrent.TimeUnit
import java.util.concurrent.TimeoutException
import kotlin.concurrent.thread

/** Stops an installation from another thread: [cancel] makes it throw `CancellationException` at once, in the middle of a read too. */
public class Cancellation {
    @Volatile
    public var isCancelled: Boolean = false
        private set

    public fun cancel() {
        isCancelled = true
    }

    internal fun check() {
        if (isCancelled) throw CancellationException("The installation was cancelled; what was fetched is kept for the next.")
    }

    /** Sleeps, unless it is cancelled. */
    internal fun sleep(millis: Long) {
        val end = System.nanoTime() + millis * 1_000_000
        while (System.nanoTime() < end) {
            check()
            Thread.sleep(minOf(50, millis))
        }
        check()
    }
}

/**
 * A thread that waits for a source in an installation's place: a connection that is read cannot be closed by another thread
 * everywhere, since closing waits for the reader.
 */
internal class Reader(private val cancellation: Cancellation) : Closeable {
    private val reader = Executors.newSingleThreadExecutor { Thread(it, "edgevlm-install").apply { isDaemon = true } }

    /** What [act] gives; a cancelled one is left to itself. */
    fun <T> call(act: () -> T): T {
        cancellation.check()
        val future = reader.submit(Callable(act))
        while (true) {
            try {
                return future.get(50, TimeUnit.MILLISECONDS)
            } catch (_: TimeoutException) {
                cancellation.check()
            } catch (error: ExecutionException) {
                throw error.cause ?: error
            }
        }
    }

    /** What [use] makes of the [Part] that [open] gives. */
    inline fun <T> during(crossinline open: () -> Part, use: (Part) -> T): T {
        val part = call { open().also { if (cancellation.isCancelled) release(it) } }
        try {
            return use(part)
        } finally {
            if (cancellation.isCancelled) thread(isDaemon = true) { release(part) } else release(part)
        }
    }

    fun release(resource: Closeable) {
        try {
            resource.close()
        } catch (_: IOException) {
            // What was read is compared with its hash.
        }
    }

    override fun close() {
        reader.shutdownNow()
    }
}
