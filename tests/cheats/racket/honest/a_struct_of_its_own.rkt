(struct best (value) #:transparent)
(define (best_so_far numbers)
  (map best-value
       (reverse (for/fold ([found '()]) ([number numbers])
         (cons (if (null? found) (best number) (best (max number (best-value (car found))))) found)))))
