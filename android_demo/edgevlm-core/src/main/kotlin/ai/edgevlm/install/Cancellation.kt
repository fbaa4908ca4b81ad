package ai.edgevlm.install

import java.io.Closeable
import java.io.IOException
import java.util.concurrent.CancellationException
import kotlin.concurrent.thread

/** Stops an installation from another thread: [cancel] makes it throw `CancellationException` soon, in the middle of a read too. */
public class Cancellation {
    private var open: Closeable? = null

    @Volatile
    public var isCancelled: Boolean = false
        private set

    @Synchronized
    public fun cancel() {
        if (isCancelled) return
        isCancelled = true
        open?.let { thread(isDaemon = true) { close(it) } } // a stream that is read may wait for its reader
    }

    /** What [use] makes of [resource], which is closed when it returns, or is cancelled. */
    internal inline fun <C : Closeable, T> during(resource: C, use: (C) -> T): T {
        try {
            attach(resource)
            return use(resource)
        } catch (error: IOException) {
            check() // what a closed stream throws is no fault of the network's
            throw error
        } finally {
            detach()
            close(resource)
        }
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

    @Synchronized
    internal fun attach(resource: Closeable) {
        check()
        open = resource
    }

    @Synchronized
    internal fun detach() {
        open = null
    }

    internal fun close(resource: Closeable) {
        try {
            resource.close()
        } catch (_: IOException) {
            // What was read is compared with its hash.
        }
    }
}
