/*
 * scan - part of shim.so. What CRIU asks about the pages of a task, mapping by mapping, asked once about all of them (by the
 * second thread, prefetch.c), and its questions answered from that.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>

#include "scan.h"
#include "shim.h"

#define MOST 65536 /* regions of one task; one with more is left to CRIU */

static int asks_about_contents(const struct pm_scan_arg_ *question)
{
	return !question->flags && !question->max_pages && question->category_inverted == (IS_PFNZERO | IS_FILE) &&
	       question->category_mask == (IS_PFNZERO | IS_FILE) && question->category_anyof_mask == (IS_PRESENT | IS_SWAPPED);
}

/* All regions of a task's memory that CRIU would be told of; returns NULL if that cannot be known. */
struct scanned *scan_all(int pagemap)
{
	static struct page_region_ regions[MOST];
	static uint64_t kinds = IS_PRESENT | IS_SWAPPED | IS_SOFT_DIRTY | IS_GUARD;
	struct pm_scan_arg_ question = {
		.size = sizeof question, .end = ALL_ADDRESSES, .vec = (uintptr_t)regions, .vec_len = MOST,
		.category_inverted = IS_PFNZERO | IS_FILE, .category_mask = IS_PFNZERO | IS_FILE,
		.category_anyof_mask = IS_PRESENT | IS_SWAPPED, .return_mask = kinds,
	};
	int count = scan_ask(pagemap, &question);
	if (count < 0 && kinds & IS_GUARD) { /* Linux < 6.15 */
		question.return_mask = kinds &= ~(uint64_t)IS_GUARD;
		count = scan_ask(pagemap, &question);
	}
	if (count < 0 || question.walk_end != question.end)
		return NULL;
	struct scanned *all = malloc(sizeof *all + count * sizeof *regions);
	if (!all)
		return NULL;
	all->kinds = kinds;
	all->count = count;
	memcpy(all->regions, regions, count * sizeof *regions);
	return all;
}

/* Answer a question as the kernel would; 0 = it has to be asked. */
int scan_answer(const struct scanned *all, struct pm_scan_arg_ *question, int *result)
{
	struct page_region_ *answer = (void *)(uintptr_t)question->vec;
	uint64_t count = 0;
	int low = 0, high = all->count;
	if (!asks_about_contents(question) || question->return_mask & ~all->kinds || !question->vec_len)
		return 0;
	while (low < high) { /* the first region that does not end before the question begins */
		int middle = (low + high) / 2;
		if (all->regions[middle].end <= question->start)
			low = middle + 1;
		else
			high = middle;
	}
	question->walk_end = question->end;
	for (; low < all->count && all->regions[low].start < question->end; low++) {
		struct page_region_ part = all->regions[low];
		part.categories &= question->return_mask;
		part.start = part.start < question->start ? question->start : part.start;
		part.end = part.end > question->end ? question->end : part.end;
		if (count && answer[count - 1].end == part.start && answer[count - 1].categories == part.categories)
			answer[count - 1].end = part.end;
		else if (count == question->vec_len) {
			question->walk_end = part.start;
			break;
		} else
			answer[count++] = part;
	}
	*result = count;
	return 1;
}
