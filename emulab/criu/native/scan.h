/* PAGEMAP_SCAN (Linux >= 6.7), which the headers of older systems do not know: which pages of a task are there, or were written. */
#ifndef EMULAB_SCAN_H
#define EMULAB_SCAN_H
#include <stdint.h>
#include <sys/ioctl.h>

struct page_region_ { uint64_t start, end, categories; };
struct pm_scan_arg_ {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
	uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};
#define PAGEMAP_SCAN_ _IOWR('f', 16, struct pm_scan_arg_)
#define IS_WRITTEN (1 << 1)
#define IS_FILE (1 << 2)
#define IS_PRESENT (1 << 3)
#define IS_SWAPPED (1 << 4)
#define IS_PFNZERO (1 << 5)
#define IS_SOFT_DIRTY (1 << 7)
#define IS_GUARD (1 << 8)
#define WP_MATCHING (1 << 0)
#define ALL_ADDRESSES 0x7ffffffff000ULL

#endif
