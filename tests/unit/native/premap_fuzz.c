/*
 * Plays CRIU's part to premap.c, same.c and prefill.c, and its restorer's: families of tasks with random private mappings, each
 * generation inherits some, drops some and adds some, and has some of its parent's pages, lacks some and changes some. Memory of
 * the first one was filled before, with right pages, wrong ones, and some that it does not have. In the end every page must be
 * where it belongs with what was put there, in every task, and nothing else in what the restorer keeps. Prints how many tasks there
 * were, how many of them had a window, how many of their mappings did not have to be moved, how many pages were compared, and how
 * many of those in the end by memcmp, how many were read, and how many of those were there before.
 */
#include "premap.c"
#include <assert.h>
#include <sys/uio.h>
#include <sys/wait.h>

#define GENERATIONS 4
#define MOST 96
#define LONGEST 6    /* pages of a mapping */
#define DISTINCT 8   /* pages: few, so that a mistaken number is often the right one */

#define NOT_NAMED (DISTINCT + 1) /* a page that is in no image; DISTINCT is a page of zeros that is */

enum { LOST = 1, LEFT_OVER = 2, IN_PIECES = 4, KEPT = 8 };

struct layout {
	int count;
	struct range final[MOST]; /* where the mapping belongs */
	uintptr_t at[MOST];       /* where it is now, in its task's area */
	unsigned content[MOST][LONGEST]; /* numbers of pages */
};

static struct { int tasks, windows, mappings, in_place, compared, unread, read, there, first_has_window; } *seen;
static int images; /* the pages file: page N has number N, and after the last one is a page of zeros */
static struct task family[GENERATIONS];
static struct { long before; uintptr_t addr; size_t len; } *info; /* CRIU's notes, of each generation */
static unsigned seed;
static int map_shows, remap_shows; /* whether the variable is in a register */
static int me; /* 0 = CRIU */

pid_t getpid(void)
{
	return me;
}

static unsigned word(unsigned page)
{
	return page >= DISTINCT ? 0 : page * 2654435761u + 1;
}

static int holds(uintptr_t at, size_t size, const unsigned *content)
{
	for (size_t i = 0; i < size; i += PAGE)
		for (size_t k = 0; k < PAGE; k += PAGE / 2)
			if (*(volatile unsigned *)(at + i + k) != word(content[i / PAGE]))
				return 0;
	return 1;
}

/* What the pages of a mapping that is new are to hold: neighbours of each other, or nothing. */
static void think_of(size_t size, unsigned *content)
{
	unsigned first = rand() % (DISTINCT + 1 - size / PAGE);
	for (size_t i = 0; i < size / PAGE; i++)
		content[i] = rand() % 4 ? first + i : NOT_NAMED;
}

static void fill(uintptr_t at, size_t size, const unsigned *content)
{
	for (size_t i = 0, n; i < size / PAGE; i += n) {
		for (n = 1; content[i] != NOT_NAMED && i + n < size / PAGE && content[i + n] == content[i] + n; n++)
			;
		if (content[i] == NOT_NAMED)
			continue;
		for (size_t k = 0; k < n; k++)
			__atomic_add_fetch(&seen->there, content[i] + k < DISTINCT && same_is(at + (i + k) * PAGE, content[i] + k), __ATOMIC_SEQ_CST);
		__atomic_add_fetch(&seen->read, n, __ATOMIC_SEQ_CST);
		struct iovec parts[] = { { (void *)(at + i * PAGE), PAGE }, { (void *)(at + (i + 1) * PAGE), (n - 1) * PAGE } };
		assert(preadv64(images, parts, 1 + (n > 1), (off_t)content[i] * PAGE) == (ssize_t)(n * PAGE));
	}
}

static int is_there(void *page)
{
	unsigned char there;
	assert(!mincore(page, PAGE, &there));
	return there & 1;
}

/* A mapping that is the parent's: some pages are as they were, some are not, some are gone. */
static void compare(uintptr_t at, size_t size, unsigned *content)
{
	char buffer[PAGE], untouched[PAGE];
	memset(untouched, 0x55, PAGE);
	for (size_t i = 0; i < size / PAGE; i++) {
		void *page = (void *)(at + i * PAGE);
		if (content[i] == NOT_NAMED && rand() % 2)
			continue;
		int gone = rand() % 8 == 0;
		if (gone) {
			assert(!madvise(page, PAGE, MADV_DONTNEED));
			content[i] = DISTINCT;
		}
		if (content[i] == NOT_NAMED || rand() % 8 == 0)
			content[i] = rand() % (DISTINCT + 1);
		memcpy(buffer, untouched, PAGE);
		assert(pread64(images, buffer, PAGE, (off_t)content[i] * PAGE) == PAGE);
		/* Not seen by memcmp, which would be taken for CRIU's. */
		int learned = *(volatile char *)buffer == 0x55, differs = memcmp(page, buffer, PAGE) != 0;
		if (gone && learned) {
			assert(differs == (content[i] != DISTINCT)); /* no memory for a page of zeros */
			assert(!differs || !is_there(page)); /* nor twice for another one */
		}
		if (differs)
			memcpy(page, buffer, PAGE);
		__atomic_add_fetch(&seen->compared, 1, __ATOMIC_SEQ_CST);
		__atomic_add_fetch(&seen->unread, !memcmp(untouched, buffer, PAGE), __ATOMIC_SEQ_CST);
	}
}

static void add(struct layout *layout, uintptr_t start, uintptr_t end)
{
	if (layout->count < MOST)
		layout->final[layout->count++] = (struct range){ start, end };
}

static void cluster(struct layout *layout, uintptr_t at, int count)
{
	while (count--) {
		size_t size = (1 + rand() % LONGEST) * PAGE;
		at += rand() % 3 ? 0 : (rand() % 5) * PAGE;
		add(layout, at, at + size);
		at += size;
	}
}

/*
 * CRIU's calls, with its variable ``to`` in a register, or where nobody finds it. They return what the function has returned,
 * and ``to`` may have changed.
 */
static uintptr_t called(void *function, uintptr_t first, size_t size, long third, long flags, long fifth, volatile uintptr_t *to, int in_register)
{
	register uintptr_t variable __asm__("r13") = in_register ? *to : 0;
	register long r8 __asm__("r8") = fifth, r9 __asm__("r9") = 0;
	uintptr_t result;
	__asm__ volatile("sub $128, %%rsp\n\tcall *%[function]\n\tadd $128, %%rsp"
			 : "=a"(result), "+r"(variable), "+D"(first), "+S"(size), "+d"(third), "+c"(flags), "+r"(r8), "+r"(r9)
			 : [function] "r"(function)
			 : "r10", "r11", "memory", "cc");
	if (in_register)
		*to = variable;
	return result;
}

/* A program and its heap below, libraries, a stack above. */
static struct layout first(void)
{
	struct layout layout = { 0 };
	cluster(&layout, 0x0f0000000000UL, rand() % 5);
	cluster(&layout, 0x100000000000UL, 30);
	cluster(&layout, 0x120000000000UL, rand() % 3);
	return layout;
}

static struct layout heir(const struct layout *parent)
{
	struct layout layout = { 0 };
	int faithful = rand() % 2;
	for (int i = 0; i < parent->count; i++) {
		uintptr_t before = i ? parent->final[i - 1].end : 0, start = parent->final[i].start;
		if (start - before > 16 * PAGE && rand() % 2)
			add(&layout, start - 8 * PAGE, start - (2 + rand() % 3) * PAGE);
		if (faithful || rand() % 5)
			add(&layout, start, parent->final[i].end);
		uintptr_t gap = i + 1 < parent->count ? parent->final[i + 1].start - parent->final[i].end : 0;
		if (gap && gap < 8 * PAGE && rand() % 2)
			add(&layout, parent->final[i].end, parent->final[i].end + PAGE * (1 + rand() % (gap / PAGE < LONGEST ? gap / PAGE : LONGEST)));
	}
	return layout;
}

static int index_in(const struct layout *layout, const struct range *range)
{
	for (int i = 0; layout && i < layout->count; i++)
		if (layout->final[i].start == range->start && layout->final[i].end == range->end)
			return i;
	return -1;
}

/* The next line of /proc/self/maps. */
static int next_mapping(FILE *maps, uintptr_t *from, uintptr_t *to)
{
	char line[400];
	if (!fgets(line, sizeof line, maps))
		return 0;
	assert(sscanf(line, "%lx-%lx", from, to) == 2);
	return 1;
}

/* Pages that nobody may use, or anything that is none of the task's own, within [start, end). */
static int foreign(const struct layout *mine, uintptr_t start, uintptr_t end)
{
	FILE *maps = fopen("/proc/self/maps", "r");
	uintptr_t from, to;
	int found = 0;
	while (next_mapping(maps, &from, &to)) {
		for (uintptr_t page = from < start ? start : from; page < to && page < end; page += PAGE) {
			int own = 0;
			for (int i = 0; i < mine->count; i++)
				own |= page >= mine->at[i] && page < mine->at[i] + length(&mine->final[i]);
			found |= !own;
		}
	}
	fclose(maps);
	return found;
}

static void move(struct layout *mine, int i)
{
	assert(bring(mine->at[i], length(&mine->final[i]), mine->final[i].start) != MAP_FAILED);
}

/* A mapping is one for its task, too. */
static int in_pieces(const struct layout *mine)
{
	FILE *maps = fopen("/proc/self/maps", "r");
	uintptr_t from, to;
	int found = 0;
	while (next_mapping(maps, &from, &to)) {
		for (int i = 0; i < mine->count; i++)
			found |= (from > mine->final[i].start && from < mine->final[i].end) || (to > mine->final[i].start && to < mine->final[i].end);
	}
	fclose(maps);
	return found;
}

static int restorer(struct layout *mine, uintptr_t start, uintptr_t end)
{
	int windowed = window.at != NULL, i;
	if (me == 1)
		seen->first_has_window = windowed;
	char *page = plain(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *place = plain(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	assert(mremap(page, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, place) == place);
	if (windowed && foreign(mine, start, end))
		return LEFT_OVER;
	__atomic_add_fetch(&seen->tasks, 1, __ATOMIC_SEQ_CST);
	__atomic_add_fetch(&seen->windows, windowed, __ATOMIC_SEQ_CST);
	for (i = 0; windowed && i < mine->count; i++) {
		__atomic_add_fetch(&seen->mappings, 1, __ATOMIC_SEQ_CST);
		__atomic_add_fetch(&seen->in_place, mine->at[i] == mine->final[i].start, __ATOMIC_SEQ_CST);
	}
	for (i = 0; i < mine->count; i++) {
		if (mine->at[i] < start || mine->at[i] + length(&mine->final[i]) > end)
			return LOST; /* the restorer would have removed it */
	}
	for (i = 0; i < mine->count && mine->final[i].start <= mine->at[i]; i++)
		move(mine, i);
	for (i = mine->count - 1; i >= 0 && mine->final[i].start >= mine->at[i]; i--)
		move(mine, i);
	for (i = 0; i < mine->count; i++)
		if (!holds(mine->final[i].start, length(&mine->final[i]), mine->content[i]))
			return LOST;
	return in_pieces(mine) ? IN_PIECES : 0;
}

__attribute__((noinline, noclone)) static int live(int generation, const struct layout *parent, const struct layout *thought_of)
{
	struct layout mine = parent ? heir(parent) : *thought_of;
	int result = 0;
	volatile uintptr_t to;
	if (!mine.count)
		return 0;
	me = generation + 1;
	tasks[generation] = (struct task){ getpid(), { mine.count, mine.final } };
	size_t sum = rand() % 8 ? 0 : 2 * PAGE; /* CRIU counts something that is not known here */
	for (int i = 0; i < mine.count; i++)
		sum += length(&mine.final[i]);
	uintptr_t start = to = (uintptr_t)mmap64(NULL, sum, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, 0, 0);
	assert(start != (uintptr_t)MAP_FAILED);
	info[generation].addr = start;
	info[generation].len = sum;
	for (int i = 0; i < mine.count; i++) {
		size_t size = length(&mine.final[i]);
		int same = index_in(parent, &mine.final[i]);
		uintptr_t got;
		if (same >= 0) {
			got = called(mremap, parent->at[same], size, size, MREMAP_FIXED | MREMAP_MAYMOVE, to, &to, remap_shows);
			if (got == (uintptr_t)MAP_FAILED && map_shows && !remap_shows && i)
				return 0; /* the variable was there before, and is not now: CRIU is to fail */
			assert(got == to);
			memcpy(mine.content[i], parent->content[same], sizeof mine.content[i]);
			compare(got, size, mine.content[i]);
		} else {
			got = called(mmap64, to, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, &to, map_shows);
			assert(got != (uintptr_t)MAP_FAILED);
			if (parent)
				think_of(size, mine.content[i]);
			fill(got, size, mine.content[i]);
		}
		mine.at[i] = got;
		to += size;
	}
	if (to - start < info[generation].len) {
		assert(!munmap((void *)to, start + info[generation].len - to));
		info[generation].len = to - start;
	}
	uintptr_t end = start + info[generation].len;
	for (int i = 0; i < mine.count; i++)
		if (!holds(mine.at[i], length(&mine.final[i]), mine.content[i]))
			return LOST;
	for (int child = 0; generation + 1 < GENERATIONS && child < 2; child++) {
		int status;
		pid_t pid = fork();
		if (!pid) {
			srand(seed * 31 + generation * 7 + child);
			exit(live(generation + 1, &mine, NULL));
		}
		waitpid(pid, &status, 0);
		result |= WIFEXITED(status) ? WEXITSTATUS(status) : LOST;
	}
	return result | restorer(&mine, start, end);
}

static void put_number(FILE *file, uint64_t value)
{
	for (; value > 0x7f; value >>= 7)
		fputc(0x80 | (value & 0x7f), file);
	fputc(value, file);
}

/* Which pages are in images, as CRIU tells. */
static void write_page_map(const struct layout *layout)
{
	static const char magics[8];
	FILE *file = fopen("pagemap-1.img", "w"), *body;
	char message[64];
	fwrite(magics, 1, sizeof magics, file);
	for (int i = -1; i < layout->count; i++)
		for (size_t k = 0; k < (i < 0 ? 1 : length(&layout->final[i]) / PAGE); k++) {
			if (i >= 0 && layout->content[i][k] == NOT_NAMED)
				continue;
			body = fmemopen(message, sizeof message, "w");
			fputc(0x08, body);
			put_number(body, i < 0 ? 1 : layout->final[i].start + k * PAGE);
			if (i >= 0) {
				fwrite("\x10\0\x20", 1, 3, body);
				put_number(body, rand() % 2 ? 1 : 4);
				fwrite("\x28\1", 1, 2, body);
			}
			uint32_t size = ftell(body);
			fclose(body);
			fwrite(&size, 1, sizeof size, file);
			fwrite(message, 1, size, file);
		}
	fclose(file);
}

/* Before the freeze: some of what the first task had then, and what it has now. */
static void fill_before(const struct layout *layout)
{
	int dir = open(".", O_RDONLY | O_DIRECTORY);
	for (int i = 0; i < layout->count; i++)
		for (size_t k = 0; k < length(&layout->final[i]) / PAGE; k++) {
			unsigned content = layout->content[i][k];
			struct prefill_order order = { .address = layout->final[i].start + k * PAGE, .pid = 1, .count = 1, .number = content };
			if (rand() % 3 == 0)
				continue;
			if (content >= DISTINCT || rand() % 6 == 0)
				order.number = rand() % DISTINCT;
			if (rand() % 8 == 0)
				order.address -= PAGE;
			assert(prefill_put(&order, sizeof order) >= 0);
		}
	write_page_map(layout);
	prefill_settle(dir, 1, layout->final, layout->count);
	prefill_settled();
	close(dir);
}

/* Whether CRIU still has any of it. */
static int kept(void)
{
	FILE *maps = fopen("/proc/self/maps", "r");
	uintptr_t from, to;
	int found = 0;
	while (next_mapping(maps, &from, &to))
		found |= from >> 32 == 0x2000;
	fclose(maps);
	return found;
}

static int family_lives(void)
{
	struct layout layout = first();
	int status, filled = rand() % 4 != 0;
	for (int i = 0; i < layout.count; i++)
		think_of(length(&layout.final[i]), layout.content[i]);
	if (filled)
		fill_before(&layout);
	pid_t pid = fork();
	if (!pid)
		exit(live(0, NULL, &layout));
	waitpid(pid, &status, 0);
	prefill_release();
	status = WIFEXITED(status) ? WEXITSTATUS(status) : LOST;
	return status | (filled && seen->first_has_window && kept() ? KEPT : 0);
}

/* Images, as the agent at the destination leaves them. */
static void write_images(const char *folder)
{
	uint32_t page[PAGE / sizeof(uint32_t)];
	int dir = open(folder, O_RDONLY | O_DIRECTORY), pages, distinct, numbers;
	assert(dir >= 0 && !fchdir(dir));
	assert((distinct = creat("distinct", 0600)) >= 0 && (numbers = creat("pages-1.img.numbers", 0600)) >= 0 && (pages = creat("pages-1.img", 0600)) >= 0);
	for (uint32_t i = 0, number; i <= DISTINCT; i++) {
		for (size_t k = 0; k < PAGE / sizeof *page; k++)
			page[k] = word(i);
		number = i < DISTINCT ? i : 0xffffffff;
		assert(write(numbers, &number, sizeof number) == sizeof number && (i == DISTINCT || write(distinct, page, PAGE) == PAGE));
	}
	setenv("EMULAB_SHIM_PAGES", "distinct", 1);
	pages_load();
	setenv("EMULAB_SHIM_PAGES", "distinct", 1); /* once more, for prefill.c */
	assert((images = open("pages-1.img", O_RDONLY)) >= 0);
	pages_opened(images, dir, "pages-1.img");
}

int main(int count, char **words)
{
	int families = count > 1 ? atoi(words[1]) : 100;
	write_images(words[2]);
	seen = plain(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	tasks = family;
	task_count = GENERATIONS;
	for (seed = 0; seed < (unsigned)families; seed++) {
		int status;
		pid_t pid = fork();
		if (!pid) {
			srand(seed);
			map_shows = seed % 4 != 0;
			remap_shows = seed % 4 > 1;
			info = mmap64(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, 0, 0);
			exit(family_lives());
		}
		waitpid(pid, &status, 0);
		if (!WIFEXITED(status) || WEXITSTATUS(status)) {
			fprintf(stderr, "family %u lost something or left something over (%x)\n", seed, status);
			return 1;
		}
	}
	printf("%d tasks, %d with a window, %d of %d mappings in place, %d of %d pages unread, %d of %d there before\n", seen->tasks, seen->windows,
	       seen->in_place, seen->mappings, seen->unread, seen->compared, seen->there, seen->read);
	return 0;
}
