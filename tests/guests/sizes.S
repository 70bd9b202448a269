# Every width of port and memory access, read and written; what it reads it stores at RESULTS. Then string instructions.
	.include "guest.inc"
	.set RESULTS, 0x60000
_start:	movl $RESULTS, %edi
	movw $SYNC, %dx
	movl $0x44332211, %eax
	outb %al, %dx
	outw %ax, %dx
	outl %eax, %dx
	inb %dx, %al
	movb %al, 0(%rdi)
	inw %dx, %ax
	movw %ax, 8(%rdi)
	inl %dx, %eax
	movl %eax, 16(%rdi)

	movl $MMIO, %ebx
	movabsq $0x8877665544332211, %rax
	movb %al, 0(%rbx)
	movw %ax, 8(%rbx)
	movl %eax, 16(%rbx)
	movq %rax, 24(%rbx)
	movb 0(%rbx), %al
	movb %al, 24(%rdi)
	movw 8(%rbx), %ax
	movw %ax, 32(%rdi)
	movl 16(%rbx), %eax
	movl %eax, 40(%rdi)
	movq 24(%rbx), %rax
	movq %rax, 48(%rdi)
	movl 0xffd(%rbx), %eax		# the last three bytes of the range and one beyond
	movl %eax, 56(%rdi)

	cld
	movw $(SYNC + 4), %dx
	leaq text(%rip), %rsi
	movl $5, %ecx
	rep outsb
	leaq text(%rip), %rsi
	movl $3, %ecx
	rep outsw
	movl $(RESULTS + 64), %edi
	movl $6, %ecx
	rep insb
	movl $2, %ecx
	rep insl
	mark 'E'
1:	hlt
	jmp 1b
text:	.ascii "string"
