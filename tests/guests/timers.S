# A kernel whose other processors each sleep until their local APIC's timer wakes them, and count that: the first by the deadline
# of their time-stamp counter, the second by one shots, the third periodically, and so on. The boot processor spins, counting.
	.include "guest.inc"
	.set LAPIC, 0xfee00000
	.set TRAMPOLINE, 0x1000
	.set COUNTERS, 0x6100		# a segment: a word for each, 16 bytes apart
	.set ARRIVED, 0x900
	.set VECTOR, 0x40
_start:	cld
	leaq ap(%rip), %rsi
	movl $TRAMPOLINE, %edi
	movl $(ap_end - ap), %ecx
	rep movsb
	movl $(TRAMPOLINE + tick - ap), VECTOR * 4
	movl $LAPIC, %ebx
	movl $0x1ff, 0xf0(%rbx)
	movl $0x000c4500, 0x300(%rbx)
	movl $0x000c4600 + (TRAMPOLINE >> 12), 0x300(%rbx)
1:	incl COUNTER
	jmp 1b

	.code16
	.macro msr number, value
	movl $\number, %ecx
	movl $\value, %eax
	xorl %edx, %edx
	wrmsr
	.endm

ap:	cli
	xorw %ax, %ax
	movw %ax, %ds
	movw %ax, %ss
	movw $COUNTERS, %ax
	movw %ax, %es
	movl $1, %esi
	lock xaddl %esi, ARRIVED
	movl %esi, %edi
	shll $4, %edi			# its word
	shll $6, %esi
	leal 0x2000(%esi), %esp
	shrl $6, %esi
	movl $0x1b, %ecx		# x2APIC
	rdmsr
	orl $0xc00, %eax
	wrmsr
	msr 0x80f, 0x1ff
	msr 0x83e, 0xb			# counts each of the bus's ticks
	movl %esi, %eax
	movb $3, %bl
	divb %bl
	cmpb $1, %ah
	je shots
	ja period
	msr 0x832, 0x40000 + VECTOR
1:	rdtsc
	addl $0x2000000, %eax
	adcl $0, %edx
	movl $0x6e0, %ecx
	wrmsr
	sti
	hlt
	cli
	incw %es:(%di)
	jmp 1b
shots:	msr 0x832, VECTOR
1:	msr 0x838, 10000000
	sti
	hlt
	cli
	incw %es:(%di)
	jmp 1b
period:	msr 0x832, 0x20000 + VECTOR
	msr 0x838, 10000000
1:	sti
	hlt
	cli
	incw %es:(%di)
	jmp 1b
tick:	pushl %eax
	pushl %ecx
	pushl %edx
	msr 0x80b, 0			# end of interrupt
	popl %edx
	popl %ecx
	popl %eax
	iret
ap_end:
