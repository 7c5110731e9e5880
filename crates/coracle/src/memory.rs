//! The memory of the process: the C library's allocator, or one that is faster with many small objects that come and go.
//!
//! A cluster that runs for months is to be small, a simulation is to be fast and is over soon. What a process is for is
//! known only when its command line has been read, so that the choice is made then: what was allocated before goes back
//! to where it came from.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, Ordering};

use mimalloc::MiMalloc;

static FAST: AtomicBool = AtomicBool::new(false);

unsafe extern "C" {
    /// Whether a pointer is into memory that mimalloc manages.
    fn mi_is_in_heap_region(pointer: *const c_void) -> bool;
}

/// Takes memory from the faster allocator from now on.
pub(crate) fn be_fast() {
    FAST.store(true, Ordering::Relaxed);
}

/// The allocator of the process.
pub(crate) struct Memory;

impl Memory {
    fn is_fast() -> bool {
        FAST.load(Ordering::Relaxed)
    }

    /// Whether this is memory of the faster allocator. Who was handed such a pointer by another thread sees the choice
    /// that this thread saw.
    fn is_of_fast(pointer: *const u8) -> bool {
        // SAFETY: the function takes any pointer and reads nothing behind it.
        Self::is_fast() && unsafe { mi_is_in_heap_region(pointer.cast()) }
    }
}

// SAFETY: each call is handed on, unchanged, to one of two allocators, and memory always to the one that it is of.
unsafe impl GlobalAlloc for Memory {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are what both ask for.
        unsafe { if Self::is_fast() { MiMalloc.alloc(layout) } else { System.alloc(layout) } }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are what both ask for.
        unsafe { if Self::is_fast() { MiMalloc.alloc_zeroed(layout) } else { System.alloc_zeroed(layout) } }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller had the pointer from here, and it goes back to the allocator that it is of.
        unsafe {
            if Self::is_of_fast(pointer) {
                MiMalloc.dealloc(pointer, layout);
            } else {
                System.dealloc(pointer, layout);
            }
        }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        // SAFETY: the caller had the pointer from here, and the allocator that it is of makes it larger or smaller.
        unsafe {
            if Self::is_of_fast(pointer) {
                MiMalloc.realloc(pointer, layout, new_size)
            } else {
                System.realloc(pointer, layout, new_size)
            }
        }
    }
}
