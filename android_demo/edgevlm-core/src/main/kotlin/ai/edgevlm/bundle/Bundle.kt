package ai.edgevlm.bundle

import ai.edgevlm.EdgeVLMException
import ai.edgevlm.Limits
import ai.edgevlm.image.ImageSpec
import ai.edgevlm.image.readImageSpec
import ai.edgevlm.json.BadJson
import ai.edgevlm.json.Json
import ai.edgevlm.text.PromptSpec
import ai.edgevlm.text.Prompter
import ai.edgevlm.text.Tokenizer
import java.io.ByteArrayOutputStream
import java.io.File
import java.io.IOException
import java.io.UncheckedIOException
import java.nio.file.Files
import java.nio.file.Path
import java.security.MessageDigest

/**
 * A folder with a manifest that says what every other file in it is: docs/bundle-format.md.
 *
 * Whatever is wrong with it is an [EdgeVLMException.BundleError] (or Unsupported, for a tokenizer that this SDK lacks).
 */
public class Bundle private constructor(public val folder: File, public val manifest: Manifest) {
    /** Rules for pictures: preprocess.json. */
    public val imageSpec: ImageSpec by lazy {
        readImageSpec(json("preprocess.json")).also { SpecCheck.image(it, manifest.spec) }
    }

    /** Rules for conversations: prompt.json. */
    public val promptSpec: PromptSpec by lazy {
        PromptSpec.read(json("prompt.json")).also { SpecCheck.prompt(it, manifest.spec) }
    }

    /** Prompts and answers in the bundle's tokenizer, each of whose ids the embedding table has. */
    public fun prompter(): Prompter {
        val file = file("tokenizer.json")
        val content = read(file, Limits.TOKENIZER_FILE)
        return Prompter(promptSpec, Tokenizer.parse(content, file.path, manifest.spec.vocabSize))
    }

    /** An existing file of the bundle by its name in the manifest. */
    public fun file(name: String): File {
        if (name in manifest.files) return File(folder, name)
        throw EdgeVLMException.BundleError("The bundle '$folder' has no file '${name.take(200)}': export it again.")
    }

    private fun json(name: String): Any? = json(file(name), Limits.SPEC_FILE)

    private fun check(name: String, info: FileInfo, everything: Boolean) {
        val file = File(folder, name)
        if (!Files.isRegularFile(path(file))) {
            throw EdgeVLMException.BundleError("The bundle '$folder' lacks its file '$name': export or copy it again.")
        }
        val size = file.length()
        if (size != info.size) {
            throw EdgeVLMException.BundleError(
                "The file '$name' of '$folder' has $size bytes, and the manifest says ${info.size}: it is damaged or incomplete; " +
                    "export or copy the bundle again.",
            )
        }
        if ((everything || size <= SMALL) && sha256(file) != info.sha256) {
            throw EdgeVLMException.BundleError(
                "The file '$name' of '$folder' was changed after the export (its sha256 differs): export or copy the bundle " +
                    "again.",
            )
        }
    }

    public companion object {
        /** Graphs and JSON are small and decide what the weights mean, so opening hashes them; weights are measured. */
        private const val SMALL = 4L shl 20
        private const val BUFFER = 1 shl 16

        /**
         * Opens a folder. [everything]: hash all files, and not only those up to 4 MiB.
         *
         * Throws [EdgeVLMException.BundleError] where it is no bundle, was written by another schema, or a file is missing,
         * changed or outside of it.
         */
        public fun open(folder: File, everything: Boolean = false): Bundle = try {
            if (!folder.isDirectory) throw EdgeVLMException.BundleError("There is no bundle '$folder': give an exported bundle's folder.")
            val file = File(folder, Manifest.NAME)
            if (!Files.isRegularFile(path(file))) {
                throw EdgeVLMException.BundleError("'$folder' is not a bundle: it has no ${Manifest.NAME}; make one with `edgevlm export`.")
            }
            checkLinks(folder)
            val bundle = Bundle(folder, Manifest.read(json(file, Limits.MANIFEST_FILE)))
            for ((name, info) in bundle.manifest.files) bundle.check(name, info, everything)
            bundle
        } catch (error: IOException) {
            throw EdgeVLMException.BundleError("The bundle '$folder' cannot be read (${error.message?.take(200)}): check its permissions.", error)
        }

        /** Links that lead out of the folder, listed or not: an engine would follow one that a graph names. */
        private fun checkLinks(folder: File) {
            val home = path(folder).toRealPath()
            val links = try {
                Files.walk(path(folder)).use { all -> all.filter { Files.isSymbolicLink(it) }.iterator().asSequence().toList() }
            } catch (error: UncheckedIOException) {
                throw error.cause ?: error
            }
            for (link in links) {
                val inside = try {
                    stays(link.toRealPath(), home)
                } catch (_: IOException) {
                    stays(path(link.parent.toFile()).toRealPath().resolve(Files.readSymbolicLink(link)).normalize(), home)
                }
                if (inside) continue
                throw EdgeVLMException.BundleError(
                    "'${path(folder).relativize(link)}' in '$folder' is a link to the outside: put the real file there, or remove it.",
                )
            }
        }

        /** Whether a place lies in the folder, or is a blob of the Hub's cache that the folder is a snapshot of. */
        private fun stays(real: Path, home: Path): Boolean {
            if (real.startsWith(home)) return true
            val snapshots = home.parent ?: return false
            val cache = snapshots.parent ?: return false
            val name = cache.fileName?.toString() ?: return false
            return snapshots.fileName.toString() == "snapshots" && name.startsWith("models--") && real.parent == cache.resolve("blobs")
        }

        private fun path(file: File): Path = try {
            file.toPath()
        } catch (_: java.nio.file.InvalidPathException) {
            throw EdgeVLMException.BundleError("The bundle has a file whose name this system cannot have: copy it again.")
        }

        private fun json(file: File, largest: Int): Any? = try {
            Json.parse(read(file, largest), largest)
        } catch (error: BadJson) {
            throw EdgeVLMException.BundleError("'$file' is not valid JSON (${error.message?.take(200)}): ${Records.AGAIN}.")
        }

        private fun read(file: File, largest: Int): ByteArray {
            val tooLarge = { EdgeVLMException.BundleError("'$file' is larger than $largest bytes, too large for what it should be: ${Records.AGAIN}.") }
            if (!Files.isRegularFile(path(file))) throw EdgeVLMException.BundleError("'$file' is no regular file: ${Records.AGAIN}.")
            if (file.length() > largest) throw tooLarge()
            val out = ByteArrayOutputStream(file.length().toInt())
            each(file) { buffer, count ->
                if (out.size() + count > largest) throw tooLarge()
                out.write(buffer, 0, count)
            }
            return out.toByteArray()
        }

        private fun sha256(file: File): String {
            val digest = MessageDigest.getInstance("SHA-256")
            each(file) { buffer, count -> digest.update(buffer, 0, count) }
            val hex = "0123456789abcdef"
            return buildString { for (byte in digest.digest()) append(hex[byte.toInt() shr 4 and 15]).append(hex[byte.toInt() and 15]) }
        }

        private inline fun each(file: File, use: (ByteArray, Int) -> Unit) {
            file.inputStream().use { stream ->
                val buffer = ByteArray(BUFFER)
                while (true) {
                    val count = stream.read(buffer)
                    if (count < 0) return
                    use(buffer, count)
                }
            }
        }
    }
}
