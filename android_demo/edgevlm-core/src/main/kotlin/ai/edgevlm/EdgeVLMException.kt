package ai.edgevlm

/**
 * Everything that a user can cause: one sentence that says what happened, what was expected and what to do.
 *
 * Its kinds are those of the Python package. Any other exception is a bug of the SDK.
 */
public open class EdgeVLMException(message: String, cause: Throwable? = null) : Exception(message.take(LONGEST), cause) {
    /** A bundle is missing, damaged, incomplete, or of another version. */
    public class BundleError(message: String, cause: Throwable? = null) : EdgeVLMException(message, cause)

    /** What should be a picture is none, is damaged, or is too large. */
    public class ImageError(message: String, cause: Throwable? = null) : EdgeVLMException(message, cause)

    /** A conversation does not fit the model's context: positions [needed] (the answer's among them) and its [limit]. */
    public class ContextFull(message: String, public val needed: Int, public val limit: Int) : EdgeVLMException(message)

    /** The model, the engine or the device cannot do what was asked for. */
    public class Unsupported(message: String) : EdgeVLMException(message)

    /** A model or a chat was used after it was closed. */
    public class Closed(message: String) : EdgeVLMException(message)

    /** An engine could not load a file, or failed while it computed. */
    public class RuntimeFailed(message: String, cause: Throwable? = null) : EdgeVLMException(message, cause)

    private companion object {
        const val LONGEST = 1000
    }
}
