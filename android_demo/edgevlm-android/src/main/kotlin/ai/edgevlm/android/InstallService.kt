package ai.edgevlm.android

import ai.edgevlm.EdgeVLMException
import ai.edgevlm.install.BundleSource
import ai.edgevlm.install.Cancellation
import ai.edgevlm.install.InstallOptions
import ai.edgevlm.install.Installer
import ai.edgevlm.install.Progress
import android.app.Notification
import android.app.NotificationManager
import android.app.Service
import android.content.Intent
import android.content.pm.ServiceInfo
import android.os.Build
import android.os.IBinder
import java.io.File
import java.util.concurrent.CancellationException
import kotlin.concurrent.thread
import org.codehaus.mojo.animal_sniffer.IgnoreJRERequirement

/**
 * A foreground service that installs a bundle while its app is not seen; stopping it cancels, and starting it goes on.
 *
 * An app extends it, makes its channel of notifications, and declares it with `foregroundServiceType="dataSync"` and the
 * permissions FOREGROUND_SERVICE, FOREGROUND_SERVICE_DATA_SYNC and, for downloads, INTERNET.
 */
public abstract class InstallService : Service() {
    private val cancellation = Cancellation()
    private var running: Thread? = null

    /** The folder that the bundle gets, as `File(filesDir, "model")`. */
    protected abstract val target: File
    protected abstract val source: BundleSource

    /** What is shown meanwhile; null: it begins. Called on any thread. */
    protected abstract fun notification(progress: Progress?): Notification

    /** How it ended; [error] is null for an installed bundle. Called on another thread than the main one, not after a cancel. */
    protected abstract fun onEnd(error: EdgeVLMException?)

    override fun onBind(intent: Intent?): IBinder? = null

    override fun onStartCommand(intent: Intent?, flags: Int, startId: Int): Int {
        show(notification(null))
        if (running == null) running = thread(name = "edgevlm-install-service") { install() }
        return START_NOT_STICKY
    }

    override fun onDestroy() {
        cancellation.cancel()
        super.onDestroy()
    }

    private fun install() {
        val manager = getSystemService(NotificationManager::class.java)
        var told = 0L
        try {
            val options = InstallOptions(space = Device.space(this))
            Installer(target, options).install(source, replace = true, cancellation = cancellation) { progress ->
                val now = System.nanoTime()
                if (now - told > SECOND || progress.done == progress.total) { // the system drops what comes more often
                    told = now
                    manager.notify(ID, notification(progress))
                }
            }
            onEnd(null)
        } catch (_: CancellationException) {
            // Whoever stopped the service knows.
        } catch (error: EdgeVLMException) {
            onEnd(error)
        } finally {
            stopForeground(STOP_FOREGROUND_REMOVE)
            stopSelf()
        }
    }

    private fun show(notification: Notification) {
        if (Build.VERSION.SDK_INT >= Build.VERSION_CODES.Q) showTyped(notification) else startForeground(ID, notification)
    }

    @IgnoreJRERequirement // API 29, behind the check of SDK_INT
    private fun showTyped(notification: Notification) = startForeground(ID, notification, ServiceInfo.FOREGROUND_SERVICE_TYPE_DATA_SYNC)

    private companion object {
        const val ID = 0xED6E
        const val SECOND = 1_000_000_000L
    }
}
