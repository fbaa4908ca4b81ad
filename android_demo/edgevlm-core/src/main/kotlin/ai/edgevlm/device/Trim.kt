package ai.edgevlm.device

/** What a model gives back when its device needs memory. */
public enum class Trim {
    NOTHING,

    /** What was kept to be faster: pictures' features. */
    CACHES,

    /** Everything that the next question can load again. */
    SESSIONS,
    ;

    public companion object {
        private const val RUNNING_LOW = 10
        private const val UI_HIDDEN = 20

        /**
         * For a level of Android's `ComponentCallbacks2.onTrimMemory`: caches while the app is seen, all when it is not.
         *
         * Since API 34 the levels below UI_HIDDEN do not come any more.
         */
        public fun of(level: Int): Trim = when {
            level >= UI_HIDDEN -> SESSIONS
            level >= RUNNING_LOW -> CACHES
            else -> NOTHING
        }
    }
}
