/*
 * Plays CRIU's part to premap.c: families of tasks with random private mappings, each generation inherits some, drops some
 * and adds some. Every page must hold what was put there, in every task. Prints how many families there were, and in how
 * many of them mappings had to be put aside.
 */
#include "premap.c"
#include <assert.h>
#include <sys/wait.h>

#define GENERATIONS 4
#define PAGE 4096

enum { LOST = 1, PUT_ASIDE = 2 };

struct layout {
	int count;
	struct range final[64]; /* where the mapping belongs */
	uintptr_t at[64];       /* where it is now, in its task's area; 0 = CRIU left it for later */
	unsigned content[64];
};

static struct task family[GENERATIONS];
static unsigned seed;

static void fill(uintptr_t at, size_t size, unsigned content)
{
	for (size_t i = 0; i < size; i += PAGE)
		*(unsigned *)(at + i) = content + i / PAGE;
}

static int holds(uintptr_t at, size_t size, unsigned content)
{
	for (size_t i = 0; i < size; i += PAGE)
		if (*(volatile unsigned *)(at + i) != content + i / PAGE)
			return 0;
	return 1;
}

static void add(struct layout *layout, uintptr_t start, uintptr_t end)
{
	if (layout->count < 64)
		layout->final[layout->count++] = (struct range){ start, end };
}

static struct layout first(void)
{
	struct layout layout = { 0 };
	uintptr_t at = 0x100000000000UL;
	for (int i = 0; i < 30; i++) {
		size_t size = (1 + rand() % 6) * PAGE;
		at += rand() % 3 ? 0 : (rand() % 5) * PAGE;
		add(&layout, at, at + size);
		at += size;
	}
	return layout;
}

static struct layout heir(const struct layout *parent)
{
	struct layout layout = { 0 };
	for (int i = 0; i < parent->count; i++) {
		if (rand() % 5)
			add(&layout, parent->final[i].start, parent->final[i].end);
		uintptr_t gap = i + 1 < parent->count ? parent->final[i + 1].start - parent->final[i].end : 0;
		if (gap && rand() % 2)
			add(&layout, parent->final[i].end, parent->final[i].end + PAGE * (1 + rand() % (gap / PAGE)));
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

static int live(int generation, const struct layout *parent)
{
	struct layout mine = parent ? heir(parent) : first();
	if (!mine.count)
		return 0;
	tasks[generation] = (struct task){ getpid(), { mine.count, mine.final } };
	size_t sum = (rand() % 3) * 2 * PAGE;
	for (int i = 0; i < mine.count; i++)
		sum += mine.final[i].end - mine.final[i].start;
	uintptr_t begin = (uintptr_t)mmap64(NULL, sum, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, 0, 0), to = begin;
	assert(begin != (uintptr_t)MAP_FAILED);
	for (int i = 0; i < mine.count; i++) {
		size_t size = mine.final[i].end - mine.final[i].start;
		int same = index_in(parent, &mine.final[i]);
		if (same >= 0 && parent->at[same]) {
			assert(mremap((void *)parent->at[same], size, size, MREMAP_FIXED | MREMAP_MAYMOVE, (void *)to) == (void *)to);
			mine.content[i] = parent->content[same];
		} else if (incremental || rand() % 2) {
			assert(mmap64((void *)to, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == (void *)to);
			mine.content[i] = rand();
			fill(to, size, mine.content[i]);
		} else {
			continue;
		}
		mine.at[i] = to;
		to += size;
	}
	for (int i = 0; i < mine.count; i++)
		if (mine.at[i] && !holds(mine.at[i], mine.final[i].end - mine.final[i].start, mine.content[i]))
			return LOST;
	int result = aside ? PUT_ASIDE : 0;
	if (to < begin + sum)
		munmap((void *)to, begin + sum - to);
	for (int child = 0; generation + 1 < GENERATIONS && child < 2; child++) {
		int status;
		pid_t pid = fork();
		if (!pid) {
			srand(seed * 31 + generation * 7 + child);
			exit(live(generation + 1, &mine));
		}
		waitpid(pid, &status, 0);
		result |= WIFEXITED(status) ? WEXITSTATUS(status) : LOST;
	}
	return result;
}

int main(int count, char **words)
{
	int families = count > 1 ? atoi(words[1]) : 100, put_aside = 0;
	tasks = family;
	task_count = GENERATIONS;
	for (seed = 0; seed < (unsigned)families; seed++) {
		int status;
		pid_t pid = fork();
		if (!pid) {
			srand(seed);
			incremental = seed & 1;
			exit(live(0, NULL));
		}
		waitpid(pid, &status, 0);
		if (!WIFEXITED(status) || WEXITSTATUS(status) & LOST) {
			fprintf(stderr, "family %u lost something (%x)\n", seed, status);
			return 1;
		}
		put_aside += (WEXITSTATUS(status) & PUT_ASIDE) != 0;
	}
	printf("%d families, put aside in %d\n", families, put_aside);
	return 0;
}
