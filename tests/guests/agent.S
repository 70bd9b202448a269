# Does what a test asks of it: loads and stores of any width, to memory and ports, one command at a time. Interrupts 0x40 to
# 0x4f are counted; they are taken only while no command runs, and start the waiting loop over instead of returning.
	.include "guest.inc"
	.set IDT, 0x70000
	.set LAPIC, 0xfee00000
	.set STACK, 0x80000
	.set BLOCK, 0x50000	# request, done, code, -, address (8), value (8)
	.set COUNTS, 0x51000	# a word for each vector
_start:	lgdt gdtr(%rip)
	leaq stubs(%rip), %rsi
	movl $0x40, %ecx
1:	movl %ecx, %edi
	shll $4, %edi
	addl $IDT, %edi
	movq %rsi, %rax
	movw %ax, 0(%rdi)
	movw $0x08, 2(%rdi)
	movw $0x8e00, 4(%rdi)		# present, 64-bit interrupt gate
	shrq $16, %rax
	movw %ax, 6(%rdi)
	shrq $16, %rax
	movl %eax, 8(%rdi)
	movl $0, 12(%rdi)
	addq $16, %rsi
	incl %ecx
	cmpl $0x50, %ecx
	jne 1b
	lidt idtr(%rip)
	movl $LAPIC, %ebx
	movl $0x1ff, 0xf0(%rbx)		# software-enable, spurious vector 0xff
	movl $BLOCK, %ebp
wait:	movl $STACK, %esp
	sti
	nop
	cli
	movl (%rbp), %r8d
	cmpl 4(%rbp), %r8d
	je wait
	movl 8(%rbp), %ecx		# width, + 0x10 to write, + 0x20 for a port
	movq 16(%rbp), %rdi
	movq %rdi, %rdx
	xorl %eax, %eax
	testl $0x10, %ecx
	jz 1f
	movq 24(%rbp), %rax
1:
	.macro case code, insn:vararg
	cmpl $\code, %ecx
	jne 2f
	\insn
	jmp done
2:
	.endm
	case 0x01, movb (%rdi), %al
	case 0x02, movw (%rdi), %ax
	case 0x04, movl (%rdi), %eax
	case 0x08, movq (%rdi), %rax
	case 0x11, movb %al, (%rdi)
	case 0x12, movw %ax, (%rdi)
	case 0x14, movl %eax, (%rdi)
	case 0x18, movq %rax, (%rdi)
	case 0x21, inb %dx, %al
	case 0x22, inw %dx, %ax
	case 0x24, inl %dx, %eax
	case 0x31, outb %al, %dx
	case 0x32, outw %ax, %dx
	case 0x34, outl %eax, %dx
	triple_fault
done:	movq %rax, 24(%rbp)
	movl %r8d, 4(%rbp)
	jmp wait

	.set n, 0x40
	.balign 16
stubs:	.rept 16
	.balign 16
	incl COUNTS + 4 * n
	jmp eoi
	.set n, n + 1
	.endr
eoi:	movl $0, 0xb0(%rbx)
	jmp wait

	.balign 8
gdt:	.quad 0, 0x00af9b000000ffff, 0x00cf93000000ffff
gdtr:	.word . - gdt - 1
	.quad gdt
idtr:	.word 0xfff
	.quad IDT
