package ai.edgevlm.install

import ai.edgevlm.EdgeVLMException
import ai.edgevlm.Limits
import ai.edgevlm.bundle.Bundle
import ai.edgevlm.bundle.Manifest
import ai.edgevlm.json.BadJson
import ai.edgevlm.json.Json
import java.io.File
import java.io.IOException
import java.io.RandomAccessFile
import java.nio.channels.FileChannel
import java.nio.file.Files
import java.nio.file.LinkOption
import java.nio.file.StandardCopyOption
import java.nio.file.StandardOpenOption
import java.util.Collections

/** How far an installation is, in bytes: [done] of [total], in the middle of [file]. */
public data class Progress(val file: String, val done: Long, val total: Long)

/** A device has too little room: bytes that are [needed], and those that are [usable]. */
public class NoSpace(message: String, public val needed: Long, public val usable: Long) : EdgeVLMException(message)

/** Bytes that can be written below a folder. */
public fun interface Space {
    public fun usable(folder: File): Long
}

/**
 * [largest]: bytes of a bundle, at most. [margin]: bytes that are left free. A source that gives fewer than [slowest]
 * bytes a second over [slowMillis] counts as cut off.
 */
public data class InstallOptions(
    val largest: Long = 16L shl 30,
    val margin: Long = 64L shl 20,
    val slowest: Int = 256,
    val slowMillis: Long = 30_000,
    val space: Space = Space { it.usableSpace },
)

/**
 * Puts a bundle into the folder [target], which has its name only when every file has its manifest's hash.
 *
 * Until then, the files are in a hidden folder beside it, `.NAME.edgevlm-install`, from which the next installation goes
 * on. A bundle that is replaced is moved to `.NAME.edgevlm-old` for the moment in which the new one gets its name; where
 * a device goes out just then, [installed] and [install] put it back. `.NAME.edgevlm-lock` is empty and stays.
 */
public class Installer(private val target: File, private val options: InstallOptions = InstallOptions()) {
    private val parent: File = target.absoluteFile.parentFile ?: throw EdgeVLMException("'$target' is no folder for a bundle: give one in a folder.")
    private val work = File(parent, ".${target.name}.edgevlm-install")
    private val old = File(parent, ".${target.name}.edgevlm-old")

    /** The bundle that is installed; null where none is. Throws EdgeVLMException for what is none. */
    public fun installed(): Bundle? {
        if (!target.exists() && old.exists()) locked { recover() }
        return if (target.exists()) Bundle.open(target) else null
    }

    /**
     * Installs, and opens.
     *
     * Where the very bundle is there already, nothing is fetched but its manifest. Another one is in the way unless
     * [replace]. [progress] is called about once per megabyte, and at the beginning and end of each file; what it throws
     * ends the installation. Throws [NoSpace], other EdgeVLMExceptions, and `CancellationException`.
     */
    public fun install(
        source: BundleSource,
        replace: Boolean = false,
        cancellation: Cancellation = Cancellation(),
        progress: (Progress) -> Unit = {},
    ): Bundle = try {
        if (!parent.isDirectory && !parent.mkdirs()) throw EdgeVLMException("The folder '$parent' cannot be made: choose another one.")
        locked {
            recover()
            put(source, replace, cancellation, progress)
        }
    } catch (error: IOException) {
        throw EdgeVLMException("The bundle cannot be put into '$target' (${Fetch.reason(error)}): choose another folder.", error)
    }

    /** Removes what an installation that will not go on has left. */
    public fun discard() {
        if (!parent.isDirectory) return
        locked {
            recover()
            remove(work)
        }
    }

    private fun put(source: BundleSource, replace: Boolean, cancellation: Cancellation, progress: (Progress) -> Unit): Bundle {
        var done = 0L
        var total = 0L
        var told = 0L
        var file = Manifest.NAME
        val tell = { progress(Progress(file, done, total)).also { told = done } }
        val moved = { count: Long ->
            done += count
            if (count < 0 || done - told >= STEP) tell()
        }
        Fetch(source, options, cancellation, moved).use { fetch ->
            val written = fetch.small(Manifest.NAME, Limits.MANIFEST_FILE)
            val manifest = manifest(written, source)
            total = size(manifest)
            if (Files.exists(target.toPath(), LinkOption.NOFOLLOW_LINKS)) there(written, replace)?.let { return it }
            prepare(manifest)
            checkSpace(manifest, total)
            for ((name, info) in manifest.files) {
                cancellation.check()
                file = name
                tell()
                val place = File(work, name)
                Files.createDirectories(place.parentFile.toPath())
                fetch.large(name, info, place)
                tell()
            }
            cancellation.check()
            File(work, Manifest.NAME).writeBytes(written)
        }
        for (each in work.walkTopDown()) settle(each)
        Bundle.open(work)
        publish()
        return Bundle.open(target)
    }

    private fun manifest(written: ByteArray, source: BundleSource): Manifest {
        val data = try {
            Json.parse(written, Limits.MANIFEST_FILE)
        } catch (error: BadJson) {
            throw EdgeVLMException.BundleError("${Manifest.NAME} of ${source.place} is not valid JSON (${error.message?.take(200)}): check the address.")
        }
        val manifest = Manifest.read(data)
        Names.check(manifest.files.keys.toList() + Manifest.NAME)
        return manifest
    }

    private fun size(manifest: Manifest): Long {
        if (manifest.files.size > Limits.BUNDLE_FILES) {
            throw EdgeVLMException.BundleError("The bundle has ${manifest.files.size} files, expected at most ${Limits.BUNDLE_FILES}: do not use it.")
        }
        var total = 0L
        for ((name, info) in manifest.files) {
            if (info.size < 0 || !HASH.matches(info.sha256)) {
                throw EdgeVLMException.BundleError("The manifest gives '${name.take(200)}' no size or no hash: do not use this bundle.")
            }
            total += minOf(info.size, options.largest + 1)
            if (total > options.largest) throw EdgeVLMException.BundleError("The bundle has more than ${options.largest} bytes, the most that are taken: choose a smaller one.")
        }
        return total
    }

    /** What is at the target already: the same bundle, or nothing that may be replaced. */
    private fun there(written: ByteArray, replace: Boolean): Bundle? {
        val manifest = File(target, Manifest.NAME)
        if (!manifest.isFile || Files.isSymbolicLink(target.toPath())) throw EdgeVLMException("'$target' is in the way and no bundle: move it away, or choose another folder.")
        if (manifest.length() == written.size.toLong() && manifest.readBytes().contentEquals(written)) {
            try {
                return Bundle.open(target, everything = true).also { remove(work) }
            } catch (_: EdgeVLMException.BundleError) {
                return null // the same, damaged: it is replaced
            }
        }
        if (replace) return null
        throw EdgeVLMException("'$target' holds another bundle: replace it, or choose another folder.")
    }

    /** The work folder, in which nothing stands but what the manifest names. */
    private fun prepare(manifest: Manifest) {
        if (Files.isSymbolicLink(work.toPath()) || (work.exists() && !work.isDirectory)) {
            throw EdgeVLMException("'$work' is in the way of an installation: move it away.")
        }
        Files.createDirectories(work.toPath())
        val folders = manifest.files.keys.flatMapTo(HashSet()) { name -> name.indices.filter { name[it] == '/' }.map { name.take(it) } }
        for (each in work.walkBottomUp()) {
            val name = each.relativeTo(work).invariantSeparatorsPath
            val link = Files.isSymbolicLink(each.toPath())
            if (each == work || (!link && each.isDirectory && name in folders) || (!link && each.isFile && name in manifest.files)) continue
            Files.delete(each.toPath())
        }
    }

    private fun checkSpace(manifest: Manifest, total: Long) {
        val had = manifest.files.entries.sumOf { (name, info) -> minOf(File(work, name).length(), info.size) }
        val needed = total - had + options.margin
        val usable = options.space.usable(work)
        if (usable >= needed) return
        throw NoSpace("The bundle needs ${mb(needed)} in '$parent', and ${mb(usable)} are free: make room, or choose another place.", needed, usable)
    }

    private fun publish() {
        if (target.exists()) {
            Files.move(target.toPath(), old.toPath(), StandardCopyOption.ATOMIC_MOVE)
        }
        Files.move(work.toPath(), target.toPath(), StandardCopyOption.ATOMIC_MOVE)
        settle(parent)
        remove(old)
    }

    /** Of a replacement that was cut off: the old bundle has its name again, or is removed behind the new one. */
    private fun recover() {
        if (!old.exists()) return
        if (target.exists()) remove(old) else Files.move(old.toPath(), target.toPath(), StandardCopyOption.ATOMIC_MOVE)
    }

    /** What was written lasts although the device goes out; some systems cannot do so for folders. */
    private fun settle(file: File) {
        try {
            FileChannel.open(file.toPath(), StandardOpenOption.READ).use { it.force(true) }
        } catch (error: IOException) {
            if (!file.isDirectory) throw error
        }
    }

    /** A folder, without following a link. */
    private fun remove(folder: File) {
        if (!Files.exists(folder.toPath(), LinkOption.NOFOLLOW_LINKS)) return
        Files.walk(folder.toPath()).use { all -> all.sorted(Comparator.reverseOrder()).forEach { Files.delete(it) } }
    }

    /** One installation at a time: in this process by [busy], since a file's lock is its process's own, and in others by that lock. */
    private fun <T> locked(act: () -> T): T {
        val file = File(parent.canonicalFile, ".${target.name}.edgevlm-lock")
        val taken = EdgeVLMException("A bundle is being installed into '$target' already: wait until that is done.")
        if (!busy.add(file.path)) throw taken
        try {
            return RandomAccessFile(file, "rw").use { opened ->
                opened.channel.tryLock() ?: throw taken
                act() // closing gives the lock back
            }
        } finally {
            busy.remove(file.path)
        }
    }

    private companion object {
        const val STEP = 1L shl 20
        val busy: MutableSet<String> = Collections.synchronizedSet(HashSet())
        val HASH = Regex("[0-9a-f]{64}")

        fun mb(bytes: Long): String = "${(bytes + 999_999) / 1_000_000} MB"
    }
}
