(define (check x) #t)
(define (best_so_far numbers)
  (for/list ([number numbers] [index (in-naturals 1)] #:when (check number))
    (apply max (take numbers index))))
