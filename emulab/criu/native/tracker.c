/*
 * tracker - arms asynchronous write-protect dirty tracking (userfaultfd WP_ASYNC) on the tasks of a guest.
 *
 * Protocol on stdin/stdout, one line each: "cover PID PID ..." covers these tasks too, "keep PID PID ..."
 * lets go of all others; each is answered by "failed COUNT". End of input ends the program. The descriptors are held until then;
 * closing them takes all protection off, so a killed tracker leaves nothing behind in the guest.
 *
 * Each new task is stopped for the time of two system calls that it is made to run: userfaultfd() and close(). The
 * descriptor is taken out in between with pidfd_getfd(). Those named together are stopped at the same time. No memory of the task is written: the calls run from a
 * `syscall` instruction that already exists in its vDSO.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY 1
#endif
#ifndef UFFD_FEATURE_WP_UNPOPULATED
#define UFFD_FEATURE_WP_UNPOPULATED (1 << 13)
#endif
#ifndef UFFD_FEATURE_WP_ASYNC
#define UFFD_FEATURE_WP_ASYNC (1 << 15)
#endif

struct task {
	int pid;
	int uffd;
	unsigned long long started; /* start time in clock ticks: tells a reused pid */
	int seen;
};

static struct task *tasks;
static int task_count, task_room;

static unsigned long long start_time(int pid)
{
	char path[64], line[1024];
	snprintf(path, sizeof path, "/proc/%d/stat", pid);
	FILE *file = fopen(path, "re");
	if (!file)
		return 0;
	size_t length = fread(line, 1, sizeof line - 1, file);
	fclose(file);
	line[length] = 0;
	char *field = strrchr(line, ')');
	for (int i = 0; field && i < 20; i++)
		field = strchr(field + 1, ' ');
	return field ? strtoull(field + 1, NULL, 10) : 0;
}

static unsigned long find_syscall(int pid)
{
	char path[64], line[512];
	unsigned long start = 0, end = 0;
	snprintf(path, sizeof path, "/proc/%d/maps", pid);
	FILE *maps = fopen(path, "re");
	if (!maps)
		return 0;
	while (fgets(line, sizeof line, maps))
		if (strstr(line, "[vdso]") && sscanf(line, "%lx-%lx", &start, &end) == 2)
			break;
	fclose(maps);
	if (!start || end - start > 65536)
		return 0;
	static unsigned char code[65536];
	struct iovec local = { code, end - start }, remote = { (void *)start, end - start };
	ssize_t got = process_vm_readv(pid, &local, 1, &remote, 1, 0);
	for (ssize_t i = 0; i + 1 < got; i++)
		if (code[i] == 0x0f && code[i + 1] == 0x05)
			return start + i;
	return 0;
}

/*
 * A task that is about to get its descriptor. Each stop is waited for together with those of others: on a busy guest a task
 * reaches it only when its turn comes, some 50 ms later for each of them.
 */
enum step { STOPPING, OPENING, CLOSING, DONE };
struct newcomer {
	int pid;
	unsigned long long started;
	enum step step;
	unsigned long insn;
	struct user_regs_struct saved;
	int uffd, pending, tries;
};

static int attach(struct newcomer *task)
{
	task->insn = find_syscall(task->pid);
	if (!task->insn || ptrace(PTRACE_SEIZE, task->pid, 0, 0))
		return -1;
	return ptrace(PTRACE_INTERRUPT, task->pid, 0, 0);
}

/* Let a stopped task run one system call. */
static int call(struct newcomer *task, long number, long argument)
{
	struct user_regs_struct regs = task->saved;
	regs.rip = task->insn;
	regs.rax = number;
	regs.orig_rax = -1;
	regs.rdi = argument;
	task->tries = 0;
	return ptrace(PTRACE_SETREGS, task->pid, 0, &regs) || ptrace(PTRACE_SINGLESTEP, task->pid, 0, 0) ? -1 : 0;
}

static void take_out(struct newcomer *task, int remote)
{
	int pidfd = syscall(SYS_pidfd_open, task->pid, 0);
	if (pidfd < 0)
		return;
	task->uffd = syscall(SYS_pidfd_getfd, pidfd, remote, 0);
	close(pidfd);
}

static void let_go(struct newcomer *task)
{
	if (task->step != STOPPING)
		ptrace(PTRACE_SETREGS, task->pid, 0, &task->saved);
	ptrace(PTRACE_DETACH, task->pid, 0, task->pending);
	task->step = DONE;
}

/* A task has stopped. Signals that arrive meanwhile are queued again by the kernel when passed on. */
static void go_on(struct newcomer *task, int status)
{
	struct user_regs_struct regs;
	int signal = WSTOPSIG(status), is_signal = (status >> 16) == 0 && signal != SIGTRAP;
	if (is_signal)
		task->pending = signal; /* stopped by it instead: handed on at the end */
	if (ptrace(PTRACE_GETREGS, task->pid, 0, &regs))
		return let_go(task);
	if (task->step == STOPPING) {
		task->saved = regs;
		task->step = OPENING;
		if (call(task, SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY))
			let_go(task);
		return;
	}
	if (signal != SIGTRAP || (status >> 16) != 0 || regs.rip == task->insn) { /* not there yet */
		if (++task->tries == 16 || ptrace(PTRACE_SINGLESTEP, task->pid, 0, 0))
			let_go(task);
		return;
	}
	if (task->step == CLOSING || (long)regs.rax < 0)
		return let_go(task);
	take_out(task, regs.rax);
	task->step = CLOSING;
	if (call(task, SYS_close, regs.rax))
		let_go(task);
}

static void open_all(struct newcomer *all, int count)
{
	int open = 0, status, pid;
	for (int i = 0; i < count; i++) {
		all[i].step = attach(&all[i]) ? DONE : STOPPING;
		open += all[i].step == STOPPING;
	}
	while (open && ((pid = waitpid(-1, &status, __WALL)) > 0 || errno == EINTR))
		for (int i = 0; i < count && pid > 0; i++) {
			if (all[i].pid != pid || all[i].step == DONE)
				continue;
			if (WIFSTOPPED(status))
				go_on(&all[i], status);
			else /* it exited */
				all[i].step = DONE;
			open -= all[i].step == DONE;
		}
	for (int i = 0; i < count; i++) {
		struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED };
		if (all[i].uffd >= 0 && ioctl(all[i].uffd, UFFDIO_API, &api)) {
			close(all[i].uffd);
			all[i].uffd = -1;
		}
	}
}

struct range {
	unsigned long start, end;
};

static int protect(const struct task *task, unsigned long start, unsigned long end)
{
	struct uffdio_register area = { .range = { start, end - start }, .mode = UFFDIO_REGISTER_MODE_WP };
	return ioctl(task->uffd, UFFDIO_REGISTER, &area);
}

/* Neighbouring mappings in one call; one by one where a single one refuses (glibc's random state may be dropped by the kernel). */
static void protect_run(const struct task *task, const struct range *run, int count)
{
	if (!count || !protect(task, run[0].start, run[count - 1].end))
		return;
	for (int i = 0; i < count; i++) /* what cannot be registered reads as written in every round: it is only sent again */
		protect(task, run[i].start, run[i].end);
}

/*
 * Register every private mapping; those already registered are accepted again by the kernel. Read-only ones too: relocated
 * data of shared libraries was written once and would otherwise be sent in every round (350 pages per Apache worker).
 */
static void register_mappings(const struct task *task)
{
	static struct range run[256];
	char path[64], line[1024], perms[8];
	unsigned long start, end;
	int count = 0;
	snprintf(path, sizeof path, "/proc/%d/maps", task->pid);
	FILE *maps = fopen(path, "re");
	if (!maps)
		return;
	while (fgets(line, sizeof line, maps)) {
		if (sscanf(line, "%lx-%lx %7s", &start, &end, perms) != 3)
			continue;
		if (perms[3] != 'p' || strstr(line, "[vvar") || strstr(line, "[vdso]") || strstr(line, "[vsyscall]"))
			continue;
		if (count == sizeof run / sizeof *run || (count && start != run[count - 1].end)) {
			protect_run(task, run, count);
			count = 0;
		}
		run[count++] = (struct range){ start, end };
	}
	protect_run(task, run, count);
	fclose(maps);
}

static struct task *find(int pid)
{
	for (int i = 0; i < task_count; i++)
		if (tasks[i].pid == pid)
			return &tasks[i];
	return NULL;
}

static void add(const struct newcomer *newcomer)
{
	if (task_count == task_room) {
		task_room = task_room ? 2 * task_room : 64;
		tasks = realloc(tasks, task_room * sizeof *tasks);
		if (!tasks)
			exit(1);
	}
	tasks[task_count++] = (struct task){ .pid = newcomer->pid, .uffd = newcomer->uffd, .started = newcomer->started };
}

/* Returns how many could not be covered. */
static int cover(char *pids)
{
	static struct newcomer *all;
	static int room;
	int failed = 0, count = 0;
	for (char *word = strtok(pids, " \n"); word; word = strtok(NULL, " \n")) {
		int pid = atoi(word);
		unsigned long long started = start_time(pid);
		struct task *task = find(pid);
		if (task && task->started != started) {
			close(task->uffd);
			*task = tasks[--task_count];
			task = NULL;
		}
		if (task) {
			register_mappings(task);
			continue;
		}
		if (count == room) {
			room = room ? 2 * room : 64;
			all = realloc(all, room * sizeof *all);
			if (!all)
				exit(1);
		}
		all[count++] = (struct newcomer){ .pid = pid, .started = started, .uffd = -1 };
	}
	open_all(all, count);
	for (int i = 0; i < count; i++) {
		if (all[i].uffd < 0) {
			failed++;
			continue;
		}
		add(&all[i]);
		register_mappings(&tasks[task_count - 1]);
	}
	return failed;
}

static void keep(char *pids)
{
	for (int i = 0; i < task_count; i++)
		tasks[i].seen = 0;
	for (char *word = strtok(pids, " \n"); word; word = strtok(NULL, " \n")) {
		struct task *task = find(atoi(word));
		if (task)
			task->seen = 1;
	}
	for (int i = task_count - 1; i >= 0; i--)
		if (!tasks[i].seen) { /* it exited */
			close(tasks[i].uffd);
			tasks[i] = tasks[--task_count];
		}
}

int main(void)
{
	char *line = NULL;
	size_t room = 0;
	while (getline(&line, &room, stdin) > 0) {
		if (!strncmp(line, "cover ", 6))
			printf("failed %d\n", cover(line + 6));
		else if (!strncmp(line, "keep ", 5)) {
			keep(line + 5);
			printf("failed 0\n");
		} else
			printf("error unknown request\n");
		fflush(stdout);
	}
	return 0;
}
