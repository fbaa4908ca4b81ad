package ai.edgevlm.install

import java.io.File

/** Installs slowly from args 0 into args 1, until someone kills it. */
internal fun main(args: Array<String>) {
    Installer(File(args[1])).install(FolderSource(File(args[0])), replace = true) {
        if (it.done == 0L) println("began")
        Thread.sleep(20)
    }
}
