package ai.edgevlm.android

import ai.edgevlm.install.BundleSource
import ai.edgevlm.install.Space
import ai.edgevlm.install.StreamSource
import android.app.ActivityManager
import android.content.Context
import android.content.res.AssetManager
import android.os.storage.StorageManager
import java.io.IOException

/** What the SDK asks of a device. */
public object Device {
    /** A bundle in the app's assets, below the folder [path]: an engine reads files alone, so it has to be installed. */
    public fun assets(context: Context, path: String): BundleSource {
        val assets = context.applicationContext.assets
        return StreamSource("the app's assets '$path'") { assets.open("$path/$it", AssetManager.ACCESS_STREAMING) }
    }

    /** Room that the system makes for this app, caches of others cleared: more than is free. */
    public fun space(context: Context): Space {
        val storage = context.getSystemService(StorageManager::class.java)
        return Space { folder ->
            try {
                storage.getAllocatableBytes(storage.getUuidForPath(folder))
            } catch (_: IOException) {
                folder.usableSpace
            }
        }
    }

    /** Bytes of memory that can be taken before the system begins to end other apps, for `MemoryNeed.check`. */
    public fun availableMemory(context: Context): Long {
        val info = ActivityManager.MemoryInfo()
        context.getSystemService(ActivityManager::class.java).getMemoryInfo(info)
        return if (info.lowMemory) 0 else maxOf(0, info.availMem - info.threshold)
    }
}
