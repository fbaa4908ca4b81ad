package ai.edgevlm.android

import ai.edgevlm.device.Trim
import android.content.ComponentCallbacks2
import android.content.Context
import android.content.res.Configuration
import java.io.Closeable

/** Calls [trim] when the system asks the app for memory, until it is closed. */
public class Trimming(context: Context, private val trim: (Trim) -> Unit) : Closeable {
    private val app = context.applicationContext

    private val callbacks = object : ComponentCallbacks2 {
        override fun onTrimMemory(level: Int) {
            val found = Trim.of(level)
            if (found != Trim.NOTHING) trim(found)
        }

        override fun onConfigurationChanged(newConfig: Configuration) = Unit

        @Deprecated("Android's own name of it")
        override fun onLowMemory() = trim(Trim.SESSIONS)
    }

    init {
        app.registerComponentCallbacks(callbacks)
    }

    override fun close(): Unit = app.unregisterComponentCallbacks(callbacks)
}
