//! The program: everything is in the library.

/// musl's own is slow where memory is given back by another thread. glibc's is not, and keeps less than half as much.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    pixelgate::cli::main()
}
