/* What jemalloc reads when the program begins: the only way to tell it that is neither unsafe Rust nor the environment. An
 * arena for each of a few threads took 300 kB each; what was freed goes back to the kernel within a second. */
const char *_rjem_malloc_conf = "narenas:2,dirty_decay_ms:1000";
