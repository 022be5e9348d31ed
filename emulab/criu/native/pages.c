/*
 * pages - part of shim.so, at a restore. A pages file is empty here: beside it, "<name>.numbers" tells for each of its pages
 * where it is in one file of distinct pages (emulab/migration/pages.py). What CRIU reads of it is put together from both.
 *
 * CRIU reads pages files in two ways: by pread and preadv, which are answered here, and, where no earlier images have a part
 * of a task's memory, by system calls of its restorer, which would find the file empty. So each task has earlier images
 * (emulab/criu/chain.py).
 *
 * EMULAB_SHIM_PAGES   the file of the distinct pages
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "shim.h"

#define PAGE 4096
#define POPULATE_WRITE 23 /* MADV_POPULATE_WRITE, Linux 5.14 */
#define AT_ONCE 4 /* pages: for fewer, a call costs as much as it saves */
#define FILES 256 /* open at once: a task has one in each folder of images */

struct file {
	int fd;
	uint32_t *numbers;
	size_t count;
};

static struct file files[FILES];
static int file_count;
static const char *distinct; /* pages, one after the other */
static size_t distinct_count;

void pages_load(void)
{
	const char *path = getenv("EMULAB_SHIM_PAGES");
	struct stat status;
	if (!path)
		return;
	int fd = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);
	unsetenv("EMULAB_SHIM_PAGES"); /* not for the programs that CRIU starts */
	if (fd < 0)
		return;
	if (!syscall(SYS_fstat, fd, &status) && status.st_size >= PAGE) {
		void *at = (void *)syscall(SYS_mmap, NULL, status.st_size, PROT_READ, MAP_SHARED, fd, 0);
		if (at != MAP_FAILED) {
			distinct = at;
			distinct_count = status.st_size / PAGE;
		}
	}
	syscall(SYS_close, fd);
}

static int is_pages_file(const char *path)
{
	unsigned number;
	int end = 0;
	return sscanf(path, "pages-%u.img%n", &number, &end) == 1 && end && !path[end];
}

/* CRIU may begin before the last pages have arrived: whoever writes the numbers of a pages file has them locked until they are
 * complete (emulab/migration/page_receiver.py). If he gives up, or dies, they end too early, and so does CRIU. */
static int open_numbers(int dir, const char *name)
{
	int fd = syscall(SYS_openat, dir, name, O_RDONLY | O_CLOEXEC, 0);
	while (fd >= 0 && syscall(SYS_flock, fd, LOCK_SH) && errno == EINTR)
		;
	return fd;
}

/* Note the numbers of a pages file that was opened. Where they cannot be had, CRIU finds the file empty, and says so. */
void pages_opened(int fd, int dir, const char *path)
{
	char name[64];
	struct stat status;
	if (fd < 0 || strncmp(path, "pages-", 6) || !is_pages_file(path) || strlen(path) + sizeof ".numbers" > sizeof name)
		return;
	pages_forget(fd);
	if (file_count == FILES)
		return;
	sprintf(name, "%s.numbers", path);
	int numbers = open_numbers(dir, name);
	if (numbers < 0)
		return;
	struct file file = { .fd = fd };
	if (!syscall(SYS_fstat, numbers, &status) && (file.numbers = malloc(status.st_size + 1)) &&
	    syscall(SYS_read, numbers, file.numbers, status.st_size) == status.st_size) {
		file.count = status.st_size / sizeof *file.numbers;
		files[file_count++] = file;
	} else
		free(file.numbers);
	syscall(SYS_close, numbers);
}

void pages_forget(int fd)
{
	for (int i = 0; i < file_count; i++)
		if (files[i].fd == fd) {
			same_closed();
			free(files[i].numbers);
			files[i] = files[--file_count];
			return;
		}
}

static const struct file *find(int fd)
{
	for (int i = 0; i < file_count; i++)
		if (files[i].fd == fd)
			return &files[i];
	return NULL;
}

/* Put a part of a page, whose number is known to exist, where CRIU wants it. */
void pages_copy(void *to, uint32_t number, size_t from, size_t size)
{
	if (number == PAGE_OF_ZEROS)
		memset(to, 0, size);
	else
		memcpy(to, distinct + (size_t)number * PAGE + from, size);
}

static int exists(uint32_t number)
{
	return number == PAGE_OF_ZEROS || number < distinct_count;
}

/* What is about to be written whole gets its pages in one call instead of one fault each. Where it fails, they come by faults. */
static void populate(char *data, size_t size)
{
	uintptr_t start = ((uintptr_t)data + PAGE - 1) & -PAGE, end = ((uintptr_t)data + size) & -PAGE;
	if (start + AT_ONCE * PAGE <= end && !same_knows(start, end - start))
		syscall(SYS_madvise, start, end - start, POPULATE_WRITE);
}

/* Fill ``size`` bytes from the place ``at`` of a pages file; returns how many there are, or -1. */
static ssize_t fill(const struct file *file, char *data, size_t size, off_t at)
{
	size_t done = 0;
	populate(data, size);
	while (done < size) {
		size_t page = (at + done) / PAGE, in_page = (at + done) % PAGE;
		size_t part = PAGE - in_page < size - done ? PAGE - in_page : size - done;
		if (page >= file->count)
			break;
		uint32_t number = file->numbers[page];
		if (!exists(number)) {
			errno = EIO;
			return -1;
		}
		if (part < PAGE)
			pages_copy(data + done, number, in_page, part);
		else if (!same_is((uintptr_t)data + done, number)) {
			pages_copy(data + done, number, 0, PAGE);
			same_filled((uintptr_t)data + done, number);
		}
		done += part;
	}
	return done;
}

ssize_t pread64(int fd, void *data, size_t size, off_t at)
{
	const struct file *file = file_count ? find(fd) : NULL;
	if (!file)
		return syscall(SYS_pread64, fd, data, size, at);
	size_t page = at / PAGE;
	if (size != PAGE || at % PAGE || page >= file->count || !exists(file->numbers[page]))
		same_left();
	else if (same_read((uintptr_t)data, file->numbers[page]))
		return PAGE;
	return fill(file, data, size, at);
}

ssize_t preadv64(int fd, const struct iovec *parts, int count, off_t at)
{
	const struct file *file = file_count ? find(fd) : NULL;
	if (!file)
		return syscall(SYS_preadv, fd, parts, count, at, 0);
	same_left();
	ssize_t done = 0;
	for (int i = 0; i < count; i++) {
		ssize_t got = fill(file, parts[i].iov_base, parts[i].iov_len, at + done);
		if (got < 0)
			return done ? done : -1;
		done += got;
		if ((size_t)got < parts[i].iov_len)
			break;
	}
	return done;
}
