// SPDX-License-Identifier: Apache-2.0
// Copyright The Cloister Authors.
//
// The pause process: PID 1 of a sandbox's PID namespace. It holds the namespaces, reaps what is orphaned in them, and
// ends on SIGTERM or SIGINT. It needs no C library, so that it is about a kilobyte and the same on every build host:
//
//   gcc -Os -ffreestanding -nostdlib -static … pause.c
//
// System call numbers: Linux arch/x86/entry/syscalls/syscall_64.tbl and arch/s390/kernel/syscalls/syscall.tbl.

#if defined(__x86_64__)

enum { SYS_rt_sigaction = 13, SYS_rt_sigprocmask = 14, SYS_rt_sigtimedwait = 128, SYS_exit_group = 231 };

static long syscall4(long number, long a, long b, long c, long d)
{
	register long r10 __asm__("r10") = d;
	long result;

	__asm__ volatile("syscall"
			 : "=a"(result)
			 : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10)
			 : "rcx", "r11", "memory");
	return result;
}

#elif defined(__s390x__)

enum { SYS_rt_sigaction = 174, SYS_rt_sigprocmask = 175, SYS_rt_sigtimedwait = 177, SYS_exit_group = 248 };

static long syscall4(long number, long a, long b, long c, long d)
{
	register long r1 __asm__("1") = number;
	register long r2 __asm__("2") = a;
	register long r3 __asm__("3") = b;
	register long r4 __asm__("4") = c;
	register long r5 __asm__("5") = d;

	__asm__ volatile("svc 0" : "+d"(r2) : "d"(r1), "d"(r3), "d"(r4), "d"(r5) : "memory", "cc");
	return r2;
}

#else
#error "the pause process knows the system calls of x86_64 and s390x only"
#endif

enum { SIGINT = 2, SIGTERM = 15, SIGCHLD = 17, SIG_BLOCK = 0, SIG_IGN = 1, SA_NOCLDWAIT = 2 };

// The kernel's struct sigaction of both architectures, not the C library's.
struct action {
	unsigned long handler, flags, restorer, mask;
};

void _start(void)
{
	// Ignoring SIGCHLD makes the kernel reap children that end, those that were orphaned to us included.
	struct action ignore = { SIG_IGN, SA_NOCLDWAIT, 0, 0 };
	// The signals to end on are blocked and waited for: blocked signals reach even PID 1, which has no default
	// actions, and no handler has to be entered or returned from.
	unsigned long end = 1UL << (SIGTERM - 1) | 1UL << (SIGINT - 1);

	syscall4(SYS_rt_sigaction, SIGCHLD, (long)&ignore, 0, sizeof(unsigned long));
	syscall4(SYS_rt_sigprocmask, SIG_BLOCK, (long)&end, 0, sizeof(unsigned long));
	for (;;) {
		long signal = syscall4(SYS_rt_sigtimedwait, (long)&end, 0, 0, sizeof(unsigned long));

		if (signal == SIGTERM || signal == SIGINT)
			syscall4(SYS_exit_group, 0, 0, 0, 0);
	}
}
